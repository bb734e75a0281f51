"""Row optimizers. An optimizer is a module with

    HYPER                                    names of the spec's fields that reach the kernels, in the order of `hyper`
    state_dim(dim) -> int                    float32 numbers of state that a row keeps
    init_state(values, state, learning_rate, hyper)                    state of a new row with these values
    update(values, state, gradient, learning_rate, hyper, step)        one gradient, in place

and, where it needs them,

    sweep(values, state, learning_rate, hyper, step)                   one step of the table-wide update
    rebase_state(before, values, state, learning_rate, hyper)          values were overwritten from outside

values, gradient, before: float32 [dim]; state: float32 [state_dim(dim)]; learning_rate: float32; hyper: float64;
step: int64. All arithmetic on rows is float32, without fused or reordered operations. The functions work on scratch:
the caller decodes before, checks that everything is finite, and encodes after.
"""

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
