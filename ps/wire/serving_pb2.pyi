from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PredictRequest(_message.Message):
    __slots__ = ("request_id", "version", "num_candidates", "shared", "candidates")
    class SharedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Column
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Column, _Mapping]] = ...) -> None: ...
    class CandidatesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Column
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Column, _Mapping]] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    version: str
    num_candidates: int
    shared: _containers.MessageMap[str, Column]
    candidates: _containers.MessageMap[str, Column]
    def __init__(self, request_id: _Optional[str] = ..., version: _Optional[str] = ..., num_candidates: _Optional[int] = ..., shared: _Optional[_Mapping[str, Column]] = ..., candidates: _Optional[_Mapping[str, Column]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("texts", "int64s", "float64s", "float32s", "feature_ids", "lengths", "missing")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    INT64S_FIELD_NUMBER: _ClassVar[int]
    FLOAT64S_FIELD_NUMBER: _ClassVar[int]
    FLOAT32S_FIELD_NUMBER: _ClassVar[int]
    FEATURE_IDS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    texts: Texts
    int64s: bytes
    float64s: bytes
    float32s: bytes
    feature_ids: bytes
    lengths: bytes
    missing: bytes
    def __init__(self, texts: _Optional[_Union[Texts, _Mapping]] = ..., int64s: _Optional[bytes] = ..., float64s: _Optional[bytes] = ..., float32s: _Optional[bytes] = ..., feature_ids: _Optional[bytes] = ..., lengths: _Optional[bytes] = ..., missing: _Optional[bytes] = ...) -> None: ...

class Texts(_message.Message):
    __slots__ = ("data", "ends")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    ends: bytes
    def __init__(self, data: _Optional[bytes] = ..., ends: _Optional[bytes] = ...) -> None: ...

class PredictReply(_message.Message):
    __slots__ = ("scores", "num_tasks", "version", "data_age_seconds", "num_unknown_keys", "request_id", "timings")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    NUM_TASKS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DATA_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NUM_UNKNOWN_KEYS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    scores: bytes
    num_tasks: int
    version: str
    data_age_seconds: float
    num_unknown_keys: int
    request_id: str
    timings: Timings
    def __init__(self, scores: _Optional[bytes] = ..., num_tasks: _Optional[int] = ..., version: _Optional[str] = ..., data_age_seconds: _Optional[float] = ..., num_unknown_keys: _Optional[int] = ..., request_id: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode_us", "wait_us", "rows_us", "tower_us")
    DECODE_US_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    ROWS_US_FIELD_NUMBER: _ClassVar[int]
    TOWER_US_FIELD_NUMBER: _ClassVar[int]
    decode_us: int
    wait_us: int
    rows_us: int
    tower_us: int
    def __init__(self, decode_us: _Optional[int] = ..., wait_us: _Optional[int] = ..., rows_us: _Optional[int] = ..., tower_us: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...
