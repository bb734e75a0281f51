from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LookupRequest(_message.Message):
    __slots__ = ("table", "keys", "dtype")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    table: str
    keys: bytes
    dtype: int
    def __init__(self, table: _Optional[str] = ..., keys: _Optional[bytes] = ..., dtype: _Optional[int] = ...) -> None: ...

class LookupReply(_message.Message):
    __slots__ = ("width", "num_unknown", "age_seconds", "version", "rows")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    NUM_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    width: int
    num_unknown: int
    age_seconds: float
    version: str
    rows: bytes
    def __init__(self, width: _Optional[int] = ..., num_unknown: _Optional[int] = ..., age_seconds: _Optional[float] = ..., version: _Optional[str] = ..., rows: _Optional[bytes] = ...) -> None: ...

class ReplicaStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReplicaStatusReply(_message.Message):
    __slots__ = ("tables", "positions", "version", "age_seconds", "records_behind", "needs_bundle", "trouble", "metrics_address")
    class TablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ReplicaTable
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ReplicaTable, _Mapping]] = ...) -> None: ...
    class PositionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    TABLES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    NEEDS_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.MessageMap[str, ReplicaTable]
    positions: _containers.ScalarMap[int, int]
    version: str
    age_seconds: float
    records_behind: int
    needs_bundle: bool
    trouble: str
    metrics_address: str
    def __init__(self, tables: _Optional[_Mapping[str, ReplicaTable]] = ..., positions: _Optional[_Mapping[int, int]] = ..., version: _Optional[str] = ..., age_seconds: _Optional[float] = ..., records_behind: _Optional[int] = ..., needs_bundle: _Optional[bool] = ..., trouble: _Optional[str] = ..., metrics_address: _Optional[str] = ...) -> None: ...

class ReplicaTable(_message.Message):
    __slots__ = ("rows", "bytes", "width")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    rows: int
    bytes: int
    width: int
    def __init__(self, rows: _Optional[int] = ..., bytes: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...
