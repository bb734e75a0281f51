"""Kernels specialised to a row layout: modules made of a template and the constants of the layout.

Equal layouts give equal text, hence one module and one entry of the compile cache, in every process. Modules lie in
the private folder of build.py. Nothing here depends on numba.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ps.storage.kernels import build, optimizers

_TEMPLATES = Path(__file__).parent / "templates"
_KERNELS = "ps.storage.kernels"


@dataclass(frozen=True)
class SegmentLayout:
    """Where a segment lies in a row, and what works on it. Offsets in words from the start of the row."""

    codec: str
    initializer: str
    optimizer: str
    dim: int
    column: int
    value_word: int
    state_dim: int
    state_word: int
    scratch: int


@dataclass(frozen=True)
class KernelLayout:
    """All constants that the kernels of a table are compiled for."""

    stride: int  # words of a row, key included
    block_shift: int
    segments: tuple[SegmentLayout, ...]


def kernels_of(layout: KernelLayout) -> ModuleType:
    """The module of templates/table.py for this layout, its kernels compiled or read from the cache."""
    names = [_load(_fill("segment", _segment_text(k, s))) for k, s in enumerate(layout.segments)]
    return sys.modules[_load(_fill("table", _table_text(layout, names)))]


def _segment_text(ordinal: int, segment: SegmentLayout) -> str:
    optimizer = optimizers.OPTIMIZERS[segment.optimizer]
    lines = [
        f"from {_KERNELS}.codecs import {segment.codec} as codec",
        f"from {_KERNELS}.initializers import {segment.initializer} as initialize",
        f"from {optimizer.__name__} import init_state, update",
    ]
    for optional in ("rebase_state", "sweep"):
        home = optimizer.__name__ if hasattr(optimizer, optional) else f"{_KERNELS}.templates.segment_defaults"
        lines.append(f"from {home} import {optional}")
    constants = {
        "ORDINAL": ordinal,
        "DIM": segment.dim,
        "COLUMN": segment.column,
        "VALUE_WORD": segment.value_word,
        "STATE_DIM": segment.state_dim,
        "STATE_WORD": segment.state_word,
        "SCRATCH": segment.scratch,
    }
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in constants.items())])


# Row functions of table.py: name, arguments of the segment's function, whether one segment can be chosen, how results
# are joined.
_ROW_FUNCTIONS = (
    ("read", "floats, halves, address, out, base", True, None),
    ("initial", "key, hyper, streams, out, base, code_floats, code_halves", False, None),
    ("create", "floats, halves, address, key, learning_rates, hyper, streams, scratch", False, None),
    ("stage", "floats, halves, address, gradients, base, learning_rates, hyper, step, scratch", False, "max"),
    ("commit", "floats, halves, address, key, streams, step, scratch", False, "sum"),
    ("stage_sweep", "floats, halves, address, learning_rates, hyper, step, scratch", False, "max"),
    ("commit_sweep", "floats, halves, address, key, streams, step, scratch", False, "sum"),
    ("stage_overwrite", "floats, halves, address, values, base, learning_rates, hyper, scratch", True, "max"),
    ("commit_overwrite", "floats, halves, address, scratch", True, "sum"),
)


def _table_text(layout: KernelLayout, modules: list[str]) -> str:
    lines = [f"import {module} as segment_{k}" for k, module in enumerate(modules)]
    lines += [
        f"STRIDE = {layout.stride}",
        f"BLOCK_SHIFT = {layout.block_shift}",
        f"WIDTH = {sum(s.dim for s in layout.segments)}",
        f"SCRATCH = {sum(s.dim + s.state_dim for s in layout.segments)}",
    ]
    for name, arguments, selects, join in _ROW_FUNCTIONS:
        lines += ["@inlined", f"def {name}_row({'segment, ' if selects else ''}{arguments}):"]
        lines += {"max": ["    result = np.uint32(0)"], "sum": ["    result = 0"], None: []}[join]
        for k, segment in enumerate(layout.segments):
            if name.endswith("_sweep") and not hasattr(optimizers.OPTIMIZERS[segment.optimizer], "sweep"):
                continue
            function = "commit" if name == "commit_sweep" else name
            call = f"segment_{k}.{function}({arguments})"
            step = {"max": f"result = max(result, {call})", "sum": f"result += {call}", None: call}[join]
            lines.append(f"    if segment < 0 or segment == {k}: {step}" if selects else f"    {step}")
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
