"""Row functions compiled into kernels: optimizers' and users', with every function that they call.

A function is plain Python; a copy of it is compiled whose globals hold its compiled helpers, so nothing needs a
decorator. Generated modules ask for the functions of a digest (ps/row_code.py), so that equal text means equal code.
"""

from __future__ import annotations

import re
import traceback
from types import FunctionType, MappingProxyType

from numba.core.errors import NumbaError

from ps.errors import RequestError
from ps.row_code import RowCode, functions_used, place_of
from ps.storage.kernels.build import Compiled, inlined, inlined_for_users

COMPILE_ERRORS: tuple[type[Exception], ...] = (NumbaError,)
_PROVIDED: dict[str, MappingProxyType[str, Compiled]] = {}


def provide(code: RowCode, *, check: bool) -> str:
    """Make the functions ready for generated modules; returns the name to ask for them by. check: with bounds checks,
    of what is compiled for a user.
    """
    check = check and code.users
    name = f"{code.digest}{'-checked' if check else ''}"
    if name not in _PROVIDED:
        done: dict[FunctionType, Compiled] = {}
        compiled = {role: _compile(function, code.users, check, done) for role, function in code.functions.items()}
        _PROVIDED[name] = MappingProxyType(compiled)
    return name


def provided(name: str) -> MappingProxyType[str, Compiled]:
    """The functions by role, for generated modules."""
    return _PROVIDED[name]


def _compile(function: FunctionType, users: bool, check: bool, done: dict[FunctionType, Compiled]) -> Compiled:
    if function in done:
        return done[function]
    # numba imports a cached function's module by name to load it; the user's may have another name, or run as __main__.
    names = {**function.__globals__, "__name__": __name__}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    done[function] = inlined_for_users(copy, check=check) if users else inlined(copy)
    names |= {name: _compile(used, users, check, done) for name, used in functions_used(function).items()}
    return done[function]


def explained(error: Exception, codes: list[RowCode]) -> Exception:
    """The error of a user's function that numba cannot compile, with its file and line; else the error itself."""
    text = str(error)
    places = re.findall(r"at (\S+\.py) \((\d+)\)", text)
    for code in codes:
        found = [f"{path}:{line}" for path, line in places if path in code.files]
        named = [function for function in code.functions.values() if f"<function {function.__qualname__} " in text]
        if code.users and (found or named):
            where = found[0] if found else place_of(named[0])
            return RequestError(f"{code.what} cannot be compiled at {where}: {_reason(text)}")
    return error


def _reason(text: str) -> str:
    """numba's message without its pipeline and its pictures of the source."""
    lines = [line.strip() for line in text.splitlines()]
    kept = []
    for line in lines:
        if line.startswith(("File ", "During:")):
            break
        if line and not line.startswith("Failed in nopython mode"):
            kept.append(line)
    return " ".join(kept)[:600] or "numba does not say why"


def failed_at(error: BaseException, code: RowCode) -> str | None:
    """File and line of the user's code in an error's traceback, the deepest; None where it is not there."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in code.files]
    return f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else None
