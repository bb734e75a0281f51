"""Code that runs on rows, before it is compiled: its functions, its numbers, and a digest of all that they rest on.

A row function is a method (or, of a built-in optimizer, a function) whose first parameter is its owner's fields and
whose others name what it wants of ROLES. It may use numpy, math, and functions and constants of modules: all of them
are part of the digest as they are in memory, so compiled code with an equal digest does the same. Nothing here
compiles anything.
"""

from __future__ import annotations

import builtins
import dis
import hashlib
import inspect
import math
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ps.errors import RequestError

# What a function may name, by what it is for. values, before, gradient: float32 [dim]; state: float32 [state_dim];
# payload: float32 [payload_dim]; out: float32 [out_dim]; total: float64 [m]; learning_rate: float32; key: uint64;
# slot, step: int64. SEEN, of tables that keep them, as they were before the call: last_seen: int64, seconds, of the
# row's last push; shows, clicks: float32, as decayed at last_seen.
SEEN = ("shows", "clicks", "last_seen")
ROLES: Mapping[str, tuple[str, ...]] = {
    "init_state": ("values", "state", "learning_rate", "key", "slot"),
    "update": ("values", "state", "gradient", "learning_rate", "key", "slot", "step", *SEEN),
    "sweep": ("values", "state", "learning_rate", "key", "slot", "step", *SEEN),
    "rebase_state": ("before", "values", "state", "learning_rate"),
    "update_row": ("values", "state", "payload", "key", "slot", "step", *SEEN),
    "read_row": ("values", "state", "out", "key", "slot", *SEEN),
    "fold_row": ("values", "state", "total", "key", "slot", *SEEN),
}
DOUBLE = "compiled as float64"
Float64 = Annotated[float, DOUBLE]  # a field that row functions get as float64; a plain float is a float32 there
Kind: TypeAlias = Literal["float32", "float64", "int64", "bool", "list"]
_EXACT = 1 << 53  # fields travel to kernels as float64


@dataclass(frozen=True)
class RowField:
    """A field that row functions see. "list": numbers, as a float64 array."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class RowCode:
    """what: its owner, for messages. functions: by role. users: not ours, so it may raise."""

    what: str
    functions: Mapping[str, FunctionType]
    fields: tuple[RowField, ...]
    users: bool
    digest: str
    files: frozenset[str]

    def names(self, role: str) -> list[str]:
        """What the function of a role wants, in its order; its owner's fields left out."""
        return _parameters(self.functions[role])[1:]

    def pack(self, owner: object) -> NDArray[np.float64]:
        """The owner's fields for the kernels: a number each, of a list its length; then the lists' numbers."""
        numbers: list[float] = []
        lists: list[float] = []
        for field in self.fields:
            value = getattr(owner, field.name)
            given = list(value) if field.kind == "list" else [value]
            for number in given:
                if not isinstance(number, int | float | np.number | np.bool_) or not math.isfinite(number):
                    raise RequestError(f"{self.what}: {field.name} is {value!r}; it must be finite")
                if isinstance(number, int) and abs(number) > _EXACT:
                    raise RequestError(f"{self.what}: {field.name} is {number}; whole numbers go up to 2^53")
            numbers.append(float(len(given) if field.kind == "list" else value))
            if field.kind == "list":
                lists += map(float, given)
        return np.array(numbers + lists, np.float64)

    def as_seen(self, owner: object) -> Any:
        """The owner's fields as a row function sees them, for calling it in plain Python."""
        kinds: dict[Kind, Callable[[Any], Any]] = {
            "float32": np.float32,
            "float64": np.float64,
            "int64": np.int64,
            "bool": bool,
            "list": lambda value: np.array(value, np.float64),
        }
        values = [kinds[field.kind](getattr(owner, field.name)) for field in self.fields]
        return namedtuple("Fields", [field.name for field in self.fields])(*values)


def row_code(what: str, functions: Mapping[str, Any], annotations: Mapping[str, Any], *, users: bool) -> RowCode:
    """Raises RequestError naming file and line of what cannot be compiled."""
    plain = {role: plain_function(function) for role, function in functions.items()}
    for role, function in plain.items():
        known = ROLES[role]
        unknown = [name for name in _parameters(function)[1:] if name not in known]
        if unknown or not _parameters(function):
            what_is = f"takes {unknown[0]!r}" if unknown else "takes nothing"
            raise RequestError(
                f"{what}: {role} {what_is} at {place_of(function)}; its first parameter is self, after it may "
                f"stand, by name: {', '.join(known)}"
            )
    fields = tuple(RowField(name, kind) for name, a in annotations.items() if (kind := _kind(a)) is not None)
    walk = _Walk(what, places=users)
    for role, function in sorted(plain.items()):
        walk.add("role", role)
        walk.add_function(function)
    return RowCode(what, plain, fields, users, walk.digest.hexdigest()[:24], frozenset(walk.files))


def annotations_of(cls: type) -> dict[str, Any]:
    """A class's fields and their types, in order; class variables left out."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar and hint is not ClassVar}


def plain_function(value: Any) -> FunctionType:
    """A function without the decorators of a compiler."""
    found = getattr(value, "py_func", value)
    if not isinstance(found, FunctionType):
        raise RequestError(f"{value!r} is no function; write the row function with def")
    return found


def place_of(function: FunctionType) -> str:
    return f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"


def functions_used(function: FunctionType) -> dict[str, FunctionType]:
    """The functions that a function calls by a global name."""
    found = {name: function.__globals__.get(name) for name, _ in _global_names(function.__code__)}
    return {name: plain_function(value) for name, value in found.items() if _is_function(value)}


def _is_function(value: Any) -> bool:
    return isinstance(value, FunctionType) or isinstance(getattr(value, "py_func", None), FunctionType)


def _parameters(function: FunctionType) -> list[str]:
    return list(inspect.signature(function).parameters)


def _kind(annotation: Any) -> Kind | None:
    """How a field of this type is compiled; None: row functions do not see it."""
    metadata: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        metadata = tuple(rest)
    if annotation is float:
        return "float64" if DOUBLE in metadata else "float32"
    if annotation is bool:
        return "bool"
    if annotation is int:
        return "int64"
    if get_origin(annotation) in (list, tuple):
        inner = set(get_args(annotation)) - {Ellipsis}
        return "list" if inner and inner <= {int, float} else None
    return None


class _Walk:
    """Adds functions, the functions and constants that they use, and so on, to one digest. places: with their files."""

    def __init__(self, what: str, *, places: bool) -> None:
        self._places = places
        self.digest, self.files = hashlib.sha256(), set[str]()
        self._what, self._seen = what, dict[int, int]()  # by id: functions outlive the walk

    def add(self, kind: str, value: str | bytes) -> None:
        data = value if isinstance(value, bytes) else value.encode()
        self.digest.update(f"{kind} {len(data)}:".encode() + data)

    def add_function(self, function: FunctionType) -> None:
        code = function.__code__
        if id(function) in self._seen:
            self.add("again", str(self._seen[id(function)]))
            return
        self._seen[id(function)] = len(self._seen)
        self.files.add(code.co_filename)
        if function.__closure__:
            raise RequestError(
                f"{self._what}: {function.__qualname__} at {place_of(function)} uses variables of a function around "
                f"it ({', '.join(code.co_freevars)}); a row function uses its arguments and what its module defines"
            )
        self._add_code(code)
        self.add("defaults", repr((function.__defaults__, function.__kwdefaults__)))
        for name, line in _global_names(code):
            where = f"{code.co_filename}:{line}"
            if name in function.__globals__:
                self.add("name", name)
                self._add_value(name, function.__globals__[name], where)
            elif not hasattr(builtins, name):
                raise RequestError(f"{self._what}: {name!r} is not defined at {where}")

    def _add_code(self, code: CodeType) -> None:
        self.add("code", code.co_code)
        self.add("lines", f"{code.co_filename if self._places else ''}:{code.co_firstlineno}")
        self.add("table", code.co_linetable)
        self.add("names", repr((code.co_name, code.co_names, code.co_varnames, code.co_flags, code.co_argcount)))
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._add_code(constant)
            else:
                listed = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
                self.add("constant", f"{type(constant).__name__} {listed!r}")

    def _add_value(self, name: str, value: Any, where: str) -> None:
        if _is_function(value):
            self.add_function(plain_function(value))
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self.add("array", f"{value.dtype.str} {value.shape}")
            self.add("bytes", value.tobytes())
        elif isinstance(value, tuple):
            self.add("tuple", str(len(value)))
            for item in value:
                self._add_value(name, item, where)
        elif value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
            self.add("value", f"{type(value).__name__} {value!r}")
        elif _is_library(value):
            self.add("library", f"{getattr(value, '__module__', '')}.{getattr(value, '__name__', name)}")
        else:
            raise RequestError(
                f"{self._what}: {name!r} at {where} is {type(value).__name__}; row functions can use numpy, math, and "
                "functions, numbers, tuples and arrays by their own name (from module import name)"
            )


def _is_library(value: Any) -> bool:
    """numpy and math, parts of them, exceptions, and the kernels' own intrinsics, which the kernels' digest covers."""
    if isinstance(value, ModuleType):
        return value in (np, math)
    if isinstance(value, type) and issubclass(value, BaseException):
        return True
    home = str(getattr(value, "__module__", "") or "") if callable(value) else ""
    own_kind = type(value).__module__.partition(".")[0]
    return home.partition(".")[0] in ("numpy", "math", "builtins") or own_kind in ("numba", "numpy")


def _global_names(code: CodeType) -> Iterator[tuple[str, int]]:
    """(name, line) of each global that a function reads, functions inside it included. Refuses numpy's generators."""
    seen: set[str] = set()
    for each in _nested(code):
        for instruction in dis.get_instructions(each):
            line = instruction.positions.lineno if instruction.positions else None
            if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and instruction.argval == "random":
                raise RequestError(
                    f"random numbers at {code.co_filename}:{line}: a row function gives the same bits wherever it "
                    "runs; make them from key and step"
                )
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and instruction.argval not in seen:
                seen.add(instruction.argval)
                yield instruction.argval, line or each.co_firstlineno


def _nested(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
