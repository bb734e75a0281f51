"""Every error that Weir raises on purpose. Each message names the place and the remedy.

`code` is the gRPC status that carries the error over the wire; the client maps it back to the same class.
"""

from __future__ import annotations


class WeirError(Exception):
    """Root of all errors raised on purpose."""

    code = "INTERNAL"


class RequestError(WeirError, ValueError):
    """A mistake in the request: bad spec, wrong shape, unknown table. The command line exits with status 2."""

    code = "INVALID_ARGUMENT"


class NonFiniteError(RequestError):
    """A NaN or an infinity in gradients or in the rows that they would make."""

    code = "OUT_OF_RANGE"


class WrongEpochError(WeirError):
    """The routing epoch of a message is not the shard's, or one of its buckets is not owned there. Re-split and
    retry.
    """

    code = "FAILED_PRECONDITION"


class OverloadedError(WeirError):
    """The shard's queue is full. Back off and retry."""

    code = "RESOURCE_EXHAUSTED"


class NotSharedError(WeirError):
    """The shard cannot reach the memory that a message shares: another machine, user or namespace. Nothing was
    applied; send the bytes.
    """

    code = "FAILED_PRECONDITION"


class ExpiredError(WeirError):
    """A push too old to tell whether it was applied. Never taken for new."""

    code = "ABORTED"


class UnavailableError(WeirError):
    """A shard or the coordinator could not be reached within the allowed retries."""

    code = "UNAVAILABLE"


class RowsLostError(WeirError):
    """A shard process was started anew and holds no rows. Nothing is trained on until a checkpoint is restored."""

    code = "NOT_FOUND"


class NotAllowedError(RequestError):
    """The shard does not know the caller, or the caller the shard: a wrong or missing token or certificate. Never
    retried.
    """

    code = "UNAUTHENTICATED"


class NoClusterError(UnavailableError, RequestError):
    """No cluster where the request says that there is one: a wrong address or name, or one that was never started."""


class MemoryLimitError(WeirError):
    """Growing the table would pass its memory limit. Nothing was written."""

    code = "CANCELLED"


class CheckpointError(RequestError):
    """A checkpoint that is damaged, incomplete or of another row layout."""

    code = "DATA_LOSS"


class BundleError(RequestError):
    """A serving bundle that is damaged, incomplete, of another format, or that would not score as training does."""

    code = "DATA_LOSS"


class JournalError(WeirError):
    """A journal that cannot be read, or not be written. Nothing that was not written has been acknowledged."""

    code = "DATA_LOSS"


class DeltaError(WeirError):
    """A delta stream that cannot be read, or not be written. Training does not need it."""

    code = "DATA_LOSS"


class TrimmedError(DeltaError, RequestError):
    """Batches of a delta stream that retention has removed, or that it never had. A newer bundle has what they said."""

    code = "OUT_OF_RANGE"


def _classes(root: type[WeirError]) -> dict[str, type[WeirError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _classes(child)
    return found


METADATA_KEY = "weir-error"  # of a status: the class name of the error


def to_wire(error: BaseException) -> tuple[str, str, str]:
    """(status code, message, class name) of an error; anything not raised on purpose travels as WeirError with its
    class.
    """
    if isinstance(error, WeirError):
        name = type(error).__name__
        return type(error).code, str(error), name
    return WeirError.code, f"unexpected {type(error).__name__}: {error}", WeirError.__name__


def from_wire(code: str, message: str, name: str | None) -> WeirError:
    """The error of a status. name: the class name that the shard sent along, or None for a status that gRPC itself
    raised.
    """
    if name is None:
        return UnavailableError(f"{code}: {message}")
    return _classes(WeirError).get(name, WeirError)(message)
