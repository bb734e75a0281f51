"""Kernels specialised to a row layout: modules made of a template and the constants of the layout.

Equal layouts give equal text, hence one module and one entry of the compile cache, in every process. A row function is
in the text by its digest, so an edited one, or an edited helper or constant of it, makes another module. Modules lie
in the private folder of build.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from ps.errors import RequestError
from ps.row_code import ROLES, SEEN, RowCode, RowField, place_of
from ps.storage.kernels import build, row_functions
from ps.storage.kernels.index import Shape

_TEMPLATES = Path(__file__).parent / "templates"
_KERNELS = "ps.storage.kernels"


@dataclass(frozen=True)
class SegmentLayout:
    """Where a segment lies in a row, and what works on it. Offsets in words from the start of the row.

    hyper: the place of its numbers in `hyper`: the initializer's parameter, then the optimizer's fields (RowCode.pack).
    """

    codec: str
    state_codec: str
    initializer: str
    optimizer: str
    code: RowCode
    dim: int
    column: int
    value_word: int
    state_dim: int
    state_word: int
    scratch: int
    hyper: int
    late: bool = False

    @property
    def state_column(self) -> int:
        """First of its floats among the states of all segments."""
        return self.scratch - self.column


@dataclass(frozen=True)
class KernelLayout:
    """All constants that the kernels of a table are compiled for. The first four: index.Shape. check: users' functions
    get bounds checks.

    metadata_words: behind the key: 0; 1: last_seen; 3: last_seen, shows, clicks.
    """

    block_shift: int
    stride: int
    early_shift: int
    early_stride: int
    segments: tuple[SegmentLayout, ...]
    check: bool = False
    metadata_words: int = 0

    @property
    def shape(self) -> Shape:
        return Shape(self.block_shift, self.stride, self.early_shift, self.early_stride)

    @property
    def may_raise(self) -> bool:
        """Whether a row function is a user's: then what a call has changed is undone when one raises."""
        return any(segment.code.users for segment in self.segments)


class Kernels:
    """The kernels of templates/table.py for one layout, by name; each compiled, or read from the cache, at its first
    use.
    """

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> build.Compiled:
        compiled = self._compile(name, wait=True)
        assert compiled is not None
        return compiled

    def compile_all(self) -> None:
        """Compile those that are not yet. Shards that start together share the work: each begins with kernels that no
        other has begun.
        """
        names = [name for name, found in vars(self._module).items() if isinstance(found, build.Deferred)]
        for wait in (False, True):
            for name in names:
                if name not in vars(self):
                    self._compile(name, wait=wait)

    def _compile(self, name: str, *, wait: bool) -> build.Compiled | None:
        deferred: build.Deferred = getattr(self._module, name)
        with _LOADING:  # numba compiles in one thread
            compiled = deferred.compile(wait=wait)
        if compiled is not None:
            setattr(self, name, compiled)
        return compiled


def kernels_of(layout: KernelLayout) -> Kernels:
    """The kernels for this layout; with users' functions, all of them compiled.

    Raises RequestError with file and line where a user's function cannot be compiled.
    """
    try:
        kernels = _kernels(_table_module(layout))
        if layout.may_raise:
            kernels.compile_all()
        return kernels
    except row_functions.COMPILE_ERRORS as error:
        raise row_functions.explained(error, [segment.code for segment in layout.segments]) from error


@cache
def _kernels(module: str) -> Kernels:
    return Kernels(sys.modules[module])


def program_of(layout: KernelLayout, code: RowCode, role: str) -> ModuleType:
    """The module of templates/program.py for a psfunc's row function and this layout. Raises as `kernels_of`."""
    _check_seen(code, layout.metadata_words)
    name = row_functions.provide(code, check=layout.check)
    lines = [
        f"import {_table_module(layout)} as table",
        "from ps.storage.kernels.row_functions import provided",
        f"functions = provided({name!r})",
        *_fields_text(code.fields, 0),
        *_function_text(code, role, "run_row", _PROGRAM_INPUTS),
        f"UPDATES = {role == 'update_row'}",
        f"WRITES_STATE = {role == 'update_row' and 'state' in code.names(role)}",
    ]
    try:
        return sys.modules[_load(_fill("program", "\n".join(lines)))]
    except row_functions.COMPILE_ERRORS as error:
        raise row_functions.explained(error, [code]) from error


def spread_of(layout: KernelLayout) -> build.Compiled:
    """The kernel of templates/spread.py for this layout, which has no late segments."""
    module = _load(_fill("spread", f"import {_table_module(layout)} as table"))
    compiled: build.Compiled = sys.modules[module].pull_spread
    return compiled


def _table_module(layout: KernelLayout) -> str:
    names = [_load(_fill("segment", _segment_text(k, s, layout))) for k, s in enumerate(layout.segments)]
    return _load(_fill("table", _table_text(layout, names)))


def _segment_text(ordinal: int, segment: SegmentLayout, layout: KernelLayout) -> str:
    _check_seen(segment.code, layout.metadata_words)
    name = row_functions.provide(segment.code, check=layout.check)
    lines = [
        f"from {_KERNELS}.codecs import {segment.codec} as codec",
        f"from {_KERNELS}.codecs import {segment.state_codec} as state_codec",
        f"from {_KERNELS}.initializers import {segment.initializer} as initialize",
        f"from {_KERNELS}.row_functions import provided",
        f"functions = provided({name!r})",
        *_fields_text(segment.code.fields, segment.hyper + 1),
    ]
    for role in ("init_state", "update", "sweep", "rebase_state"):
        lines += _function_text(segment.code, role, role, [name for name in ROLES[role] if name != "slot"])
    constants = {
        "ORDINAL": ordinal,
        "DIM": segment.dim,
        "COLUMN": segment.column,
        "VALUE_WORD": segment.value_word,
        "STATE_DIM": segment.state_dim,
        "STATE_WORD": segment.state_word,
        "STATE_COLUMN": segment.state_column,
        "SCRATCH": segment.scratch,
        "HYPER": segment.hyper,
        "METADATA_WORDS": layout.metadata_words,
    }
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in constants.items())])


def _check_seen(code: RowCode, metadata_words: int) -> None:
    """Raise RequestError where a function names what the rows do not remember."""
    kept = {0: (), 1: ("last_seen",), 3: SEEN}[metadata_words]
    for role, function in code.functions.items():
        for name in code.names(role):
            if name in SEEN and name not in kept:
                raise RequestError(
                    f"{code.what}: {role} at {place_of(function)} names {name!r}, which rows of the table do not "
                    "keep; set keep_counts: true"
                )


def _fields_text(fields: tuple[RowField, ...], first: int) -> list[str]:
    """`fields_of(hyper)`: the fields packed from hyper[first] on, as a named tuple."""
    lines = [f"Fields = namedtuple('Fields', {[field.name for field in fields]!r})", "@inlined"]
    lines += ["def fields_of(hyper):", f"    start = np.int64({first + len(fields)})"]
    for k, field in enumerate(fields):
        number = f"hyper[{first + k}]"
        if field.kind == "list":
            lines += [f"    field_{k} = part(hyper, start, np.int64({number}))", f"    start += np.int64({number})"]
        else:
            value = f"{number} != 0" if field.kind == "bool" else f"np.{field.kind}({number})"
            lines.append(f"    field_{k} = {value}")
    return [*lines, f"    return Fields({', '.join(f'field_{k}' for k in range(len(fields)))})"]


def _function_text(code: RowCode, role: str, name: str, inputs: Iterable[str]) -> list[str]:
    """A function of these inputs that calls the code's own with what it names; the default where it has none."""
    lines = ["@inlined", f"def {name}(hyper, {', '.join(inputs)}):"]
    if role not in code.functions:
        return [*lines, *(_ZEROS if role == "init_state" else ["    pass"])]
    names = code.names(role)
    if "slot" in names:
        lines.append("    slot = np.int64(key >> np.uint64(52))")
    call = f"    function_{role}({', '.join(['fields_of(hyper)', *names])})"
    return [f"function_{role} = functions[{role!r}]", *lines, call]


_PROGRAM_INPUTS = ("values", "state", "payload", "out", "total", "key", "step", *SEEN)
_ZEROS = ["    for j in range(state.shape[0]):", "        state[j] = np.float32(0)"]


# Row functions of table.py: name, arguments of the segment's function, whether one segment can be chosen, how results
# are joined. Those with an address pass over the late segments of an early row; "_late": for these only.
_ROW_FUNCTIONS = (
    ("read", "floats, halves, address, out, base", True, None),
    ("read_state", "floats, halves, address, out, base", True, None),
    ("write_state", "floats, halves, address, state, base", True, "sum"),
    ("initial", "key, hyper, streams, out, base, code_floats, code_halves", False, None),
    ("initial_late", "key, hyper, streams, out, base, code_floats, code_halves", False, None),
    ("create", "floats, halves, address, key, learning_rates, hyper, streams, scratch", False, None),
    ("create_late", "floats, halves, address, key, learning_rates, hyper, streams, scratch", True, None),
    ("forget_late", "values, base, state, state_base", True, None),
    ("stage", "floats, halves, address, key, gradients, base, learning_rates, hyper, step, scratch", False, "max"),
    ("commit", "floats, halves, address, key, streams, step, scratch", False, "sum"),
    ("stage_sweep", "floats, halves, address, key, learning_rates, hyper, step, scratch", False, "max"),
    ("commit_sweep", "floats, halves, address, key, streams, step, scratch", False, "sum"),
    ("stage_overwrite", "floats, halves, address, values, base, learning_rates, hyper, scratch", True, "max"),
    ("commit_overwrite", "floats, halves, address, scratch", True, "sum"),
)


def _table_text(layout: KernelLayout, modules: list[str]) -> str:
    lines = [f"import {module} as segment_{k}" for k, module in enumerate(modules)]
    lines += [
        f"SHAPE = Shape{tuple(layout.shape)}",
        f"WIDTH = {sum(s.dim for s in layout.segments)}",
        f"SCRATCH = {sum(s.dim + s.state_dim for s in layout.segments)}",
        f"MAY_RAISE = {layout.may_raise}",
        f"METADATA_WORDS = {layout.metadata_words}",
    ]
    for name, arguments, selects, join in _ROW_FUNCTIONS:
        lines += ["@inlined", f"def {name}_row({'segment, ' if selects else ''}{arguments}):"]
        lines += {"max": ["    result = np.uint32(0)"], "sum": ["    result = 0"], None: []}[join]
        skips = layout.early_stride > 0 and "address" in arguments
        lines += ["    is_full, address = address < EARLY, address & PLACE"] if skips else []
        for k, segment in enumerate(layout.segments):
            if name.endswith("_sweep") and "sweep" not in segment.code.functions:
                continue
            if name.endswith("_late") and not segment.late:
                continue
            function = "commit" if name == "commit_sweep" else name.removesuffix("_late")
            call = f"segment_{k}.{function}({arguments})"
            step = {"max": f"result = max(result, {call})", "sum": f"result += {call}", None: call}[join]
            chosen = [f"(segment < 0 or segment == {k})"] if selects else []
            present = ["is_full"] if skips and segment.late else []
            conditions = " and ".join(present + chosen)
            lines.append(f"    if {conditions}: {step}" if conditions else f"    {step}")
        lines.append("    return" if join is None else "    return result")
    return "\n".join(lines)


def _fill(template: str, layout: str) -> str:
    """The template with the lines between its layout marks replaced."""
    before, rest = (_TEMPLATES / f"{template}.py").read_text().split("# layout\n")
    return f"{before}# layout\n{layout}\n# end of layout\n{rest.split('# end of layout' + chr(10))[1]}"


_LOADING = threading.RLock()  # shards of one process build their tables at the same time


def _load(text: str) -> str:
    """Import a module of this text from the private folder; returns its name."""
    with _LOADING:
        return _load_once(text)


def _load_once(text: str) -> str:
    name = f"weir_layout_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    if name in sys.modules:
        return name
    path = build.cache_folder() / f"{name}.py"
    if not path.exists():
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            file.write(text)
        try:
            # numba's cache compares the file's time: unlike a rename, a link never replaces what another process wrote.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return name
