"""A client of the prediction server over gRPC.

with PredictionClient("127.0.0.1:8500") as client:
    answer = client.predict(shared={"user": "u7"}, candidates={"item": ["a", "b"], "price": np.array([1.5, 2.0])})
    answer.scores                       # float32 [2, num_tasks]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

from ps.errors import METADATA_KEY, OverloadedError, WeirError, from_wire
from ps.security import SecurityOptions, client_identity, read_token, token_metadata
from ps.types import Floats
from ps.wire import serving_pb2 as pb
from workers.serving.columns import Column, from_json
from workers.serving.errors import LateError, MalformedError, TooLargeError, UnknownVersionError
from workers.serving.grpc_service import FIELD_KEY, SERVICE

Values: TypeAlias = Sequence[Any] | NDArray[Any]  # of one column, a row each
_MAX_REPLY_BYTES = 1 << 30


@dataclass(frozen=True)
class Answer:
    """scores: float32 [num_candidates, num_tasks]. data_age_seconds: None where unknown."""

    scores: Floats
    version: str
    data_age_seconds: float | None
    num_unknown_keys: int
    request_id: str
    timings: pb.Timings


class PredictionClient:
    """Thread-safe. security: `token_file`, and `tls` with the client's own certificate, as for shards."""

    def __init__(self, address: str, security: SecurityOptions | None = None) -> None:
        security = security or SecurityOptions()
        identity = client_identity(security)
        self._metadata = token_metadata(read_token(security))
        options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", _MAX_REPLY_BYTES)]
        if identity is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            if security.tls is not None and security.tls.server_name is not None:
                options.append(("grpc.ssl_target_name_override", security.tls.server_name))
            credentials = grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)
            self._channel = grpc.secure_channel(address, credentials, options)
        self._predict = self._channel.unary_unary(f"/{SERVICE}/Predict", None, None)
        self._describe = self._channel.unary_unary(f"/{SERVICE}/Describe", None, None)

    def predict(
        self,
        shared: Mapping[str, Any],
        candidates: Mapping[str, Values],
        *,
        version: str = "",
        request_id: str = "",
        timeout_seconds: float | None = None,
    ) -> Answer:
        """Scores of the candidates. shared: one value by column (a list where it has several); candidates: one a row.

        Values: texts, integers, numbers, None where missing; int64, float32 and float64 arrays; uint64 arrays are taken
        for hashed ids. Raises MalformedError, OverloadedError, LateError, UnavailableError ...
        """
        return self.send(encode(shared, candidates, version=version, request_id=request_id), timeout_seconds)

    def send(self, request: bytes, timeout_seconds: float | None = None) -> Answer:
        """The answer to the bytes of a PredictRequest."""
        try:
            data = self.start(request, timeout_seconds).result()
        except grpc.RpcError as error:
            raise _error_of(error) from None
        reply = pb.PredictReply.FromString(data)
        return Answer(
            np.frombuffer(reply.scores, "<f4").reshape(-1, reply.num_tasks),
            reply.version,
            None if reply.data_age_seconds < 0 else reply.data_age_seconds,
            reply.num_unknown_keys,
            reply.request_id,
            reply.timings,
        )

    def start(self, request: bytes, timeout_seconds: float | None = None) -> Any:
        """The grpc.Future of a PredictReply's bytes."""
        return self._predict.future(request, timeout_seconds, self._metadata)

    def describe(self) -> str:
        """The JSON text of what the model reads and answers."""
        try:
            return pb.DescribeReply.FromString(self._describe(b"", None, self._metadata)).json
        except grpc.RpcError as error:
            raise _error_of(error) from None

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> PredictionClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encode(
    shared: Mapping[str, Any], candidates: Mapping[str, Values], *, version: str = "", request_id: str = ""
) -> bytes:
    """A PredictRequest. Raises RequestError for values that no column holds."""
    num_candidates = len(next(iter(candidates.values()))) if candidates else 1
    message = pb.PredictRequest(request_id=request_id, version=version, num_candidates=num_candidates)
    for name, value in shared.items():
        message.shared[name].CopyFrom(_message_of(_column(f"shared.{name}", [value])))
    for name, values in candidates.items():
        message.candidates[name].CopyFrom(_message_of(_column(f"candidates.{name}", values)))
    return message.SerializeToString()


def _column(place: str, values: Values) -> Column:
    if not isinstance(values, np.ndarray):
        plain = [each.tolist() if isinstance(each, np.ndarray | np.generic) else each for each in values]
        return from_json(place, plain)
    if values.dtype in (np.float32, np.float64):
        return Column(place, "numbers", values)
    if values.dtype == np.int64:
        return Column(place, "integers", values)
    if values.dtype == np.uint64:
        return Column(place, "ids", values)
    return from_json(place, values.tolist())


def _message_of(column: Column) -> pb.Column:
    message = pb.Column()
    if column.offsets is not None:
        first, last = int(column.offsets[0]), int(column.offsets[-1])
        message.texts.data = column.values[first:last].tobytes()
        message.texts.ends = (column.offsets[1:] - first).astype("<u4").tobytes()
    elif column.kind == "integers":
        message.int64s = column.values.astype("<i8").tobytes()
    elif column.kind == "ids":
        message.feature_ids = column.values.astype("<u8").tobytes()
    elif column.values.dtype == np.float32:
        message.float32s = column.values.astype("<f4").tobytes()
    else:
        message.float64s = column.values.astype("<f8").tobytes()
    if column.lengths is not None:
        message.lengths = column.lengths.astype("<u4").tobytes()
    if column.missing is not None:
        message.missing = column.missing.astype("u1").tobytes()
    return message


def _error_of(error: grpc.RpcError) -> WeirError:
    """The error that the server raised, or what gRPC says instead of one."""
    metadata: Any = error.trailing_metadata() or ()
    trailing = {key: value for key, value in metadata}  # noqa: C416
    code, details, name = error.code().name, error.details() or "", trailing.get(METADATA_KEY)
    if name is None and code in _OF_GRPC:
        return _OF_GRPC[code](details)
    if name in _WITH_FIELD:
        place = trailing.get(FIELD_KEY, "").encode().decode("unicode_escape")
        return _WITH_FIELD[name](place, details.removeprefix(f"{place}: "))
    return from_wire(code, details, name)


_WITH_FIELD = {kind.__name__: kind for kind in (MalformedError, TooLargeError, UnknownVersionError)}
_OF_GRPC: dict[str, type[WeirError]] = {"DEADLINE_EXCEEDED": LateError, "RESOURCE_EXHAUSTED": OverloadedError}
