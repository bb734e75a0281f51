"""Row optimizers, ours and users'. An optimizer is its fields (a class of ps/spec.py) and functions of a row:

    state_dim(self, dim) -> int                 float32 numbers of state that a row keeps
    update(self, values, state, gradient)       one gradient, in place

and, where it needs them,

    init_state(self, values, state)             state of a new row with these values; zeros without it
    sweep(self, values, state)                  one step of the table-wide update
    rebase_state(self, before, values, state)   values were overwritten from outside

The first parameter has the fields as attributes: float32, those declared Float64 as float64. After it a function names
what it wants, in any order: values, gradient, before (float32 [dim]), state (float32 [state_dim]), learning_rate
(float32), key (uint64), slot, step (int64); ps/row_code.py has the list. Ours are modules of this folder, a user's are
methods of the class itself. All arithmetic on rows is float32, without fused or reordered operations. The functions
work on scratch: the caller decodes before, checks that everything is finite, and encodes after.
"""

from ps import spec
from ps.row_code import ROLES, RowCode, annotations_of, row_code
from ps.storage.kernels.optimizers import adagrad, adam, adam_elapsed, adam_sweep, ftrl, rowwise_adagrad, sgd

OPTIMIZERS = {
    "sgd": sgd,
    "adagrad": adagrad,
    "rowwise_adagrad": rowwise_adagrad,
    "adam": adam,
    "adam_elapsed": adam_elapsed,
    "adam_sweep": adam_sweep,
    "ftrl": ftrl,
}


def kernel_name(optimizer: spec.RowOptimizer) -> str:
    """The name of an optimizer with the variant that its fields choose; stored row layouts carry it."""
    match optimizer:
        case spec.Adam(sweep=True):
            return "adam_sweep"
        case spec.Adam(l2_per="step"):
            return "adam_elapsed"
    return optimizer.name


def state_dim(optimizer: spec.RowOptimizer, dim: int) -> int:
    """Floats of state of a row of `dim` values. Raises RequestError when a user's function gives no such number."""
    if (ours := OPTIMIZERS.get(kernel_name(optimizer))) is not None:
        return int(ours.state_dim(optimizer, dim))
    return spec.checked_state_dim(optimizer, dim)


def code_of(optimizer: spec.RowOptimizer) -> RowCode:
    """What compiles an optimizer. Raises RequestError naming file and line of what cannot be compiled."""
    name = kernel_name(optimizer)
    owner = OPTIMIZERS.get(name, type(optimizer))
    functions = {role: getattr(owner, role) for role in spec.OPTIMIZER_ROLES if hasattr(owner, role)}
    assert set(functions) <= set(ROLES)
    fields = {field: hint for field, hint in annotations_of(type(optimizer)).items() if field != "learning_rate"}
    return row_code(f"optimizer {name!r}", functions, fields, users=name not in OPTIMIZERS)
