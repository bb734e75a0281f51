from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FLOAT32: _ClassVar[Dtype]
    FLOAT16: _ClassVar[Dtype]
    BFLOAT16: _ClassVar[Dtype]
FLOAT32: Dtype
FLOAT16: Dtype
BFLOAT16: Dtype

class Request(_message.Message):
    __slots__ = ("wire_version", "routing_epoch", "client", "sequence", "step", "group", "calls", "event_time", "shared")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    routing_epoch: int
    client: int
    sequence: int
    step: int
    group: Group
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    event_time: int
    shared: SharedBuffer
    def __init__(self, wire_version: _Optional[int] = ..., routing_epoch: _Optional[int] = ..., client: _Optional[int] = ..., sequence: _Optional[int] = ..., step: _Optional[int] = ..., group: _Optional[_Union[Group, _Mapping]] = ..., calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., event_time: _Optional[int] = ..., shared: _Optional[_Union[SharedBuffer, _Mapping]] = ...) -> None: ...

class SharedBuffer(_message.Message):
    __slots__ = ("pid", "descriptor", "id", "size")
    PID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    pid: int
    descriptor: int
    id: int
    size: int
    def __init__(self, pid: _Optional[int] = ..., descriptor: _Optional[int] = ..., id: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("start", "length")
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    start: int
    length: int
    def __init__(self, start: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("generation", "rank", "world")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    generation: int
    rank: int
    world: int
    def __init__(self, generation: _Optional[int] = ..., rank: _Optional[int] = ..., world: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("table", "psfunc", "args", "keys", "payload", "dtype", "learning_rates", "drop_above", "drop_below", "shared_keys", "shared_payload", "shared_reply", "counts", "shared_counts")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    PSFUNC_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATES_FIELD_NUMBER: _ClassVar[int]
    DROP_ABOVE_FIELD_NUMBER: _ClassVar[int]
    DROP_BELOW_FIELD_NUMBER: _ClassVar[int]
    SHARED_KEYS_FIELD_NUMBER: _ClassVar[int]
    SHARED_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SHARED_REPLY_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SHARED_COUNTS_FIELD_NUMBER: _ClassVar[int]
    table: str
    psfunc: str
    args: bytes
    keys: bytes
    payload: bytes
    dtype: Dtype
    learning_rates: _containers.RepeatedScalarFieldContainer[float]
    drop_above: float
    drop_below: float
    shared_keys: Range
    shared_payload: Range
    shared_reply: Range
    counts: bytes
    shared_counts: Range
    def __init__(self, table: _Optional[str] = ..., psfunc: _Optional[str] = ..., args: _Optional[bytes] = ..., keys: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., learning_rates: _Optional[_Iterable[float]] = ..., drop_above: _Optional[float] = ..., drop_below: _Optional[float] = ..., shared_keys: _Optional[_Union[Range, _Mapping]] = ..., shared_payload: _Optional[_Union[Range, _Mapping]] = ..., shared_reply: _Optional[_Union[Range, _Mapping]] = ..., counts: _Optional[bytes] = ..., shared_counts: _Optional[_Union[Range, _Mapping]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Result]
    def __init__(self, results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("values", "payload", "num_applied", "num_created", "num_nonfinite", "num_dropped_above", "num_dropped_below", "num_skipped", "num_refused", "shared_bytes")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    NUM_APPLIED_FIELD_NUMBER: _ClassVar[int]
    NUM_CREATED_FIELD_NUMBER: _ClassVar[int]
    NUM_NONFINITE_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_ABOVE_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_BELOW_FIELD_NUMBER: _ClassVar[int]
    NUM_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    payload: bytes
    num_applied: int
    num_created: int
    num_nonfinite: int
    num_dropped_above: int
    num_dropped_below: int
    num_skipped: int
    num_refused: int
    shared_bytes: int
    def __init__(self, values: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., num_applied: _Optional[int] = ..., num_created: _Optional[int] = ..., num_nonfinite: _Optional[int] = ..., num_dropped_above: _Optional[int] = ..., num_dropped_below: _Optional[int] = ..., num_skipped: _Optional[int] = ..., num_refused: _Optional[int] = ..., shared_bytes: _Optional[int] = ...) -> None: ...

class AssignRequest(_message.Message):
    __slots__ = ("cluster_spec", "routing", "shard")
    CLUSTER_SPEC_FIELD_NUMBER: _ClassVar[int]
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    cluster_spec: bytes
    routing: Routing
    shard: int
    def __init__(self, cluster_spec: _Optional[bytes] = ..., routing: _Optional[_Union[Routing, _Mapping]] = ..., shard: _Optional[int] = ...) -> None: ...

class AssignReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Routing(_message.Message):
    __slots__ = ("epoch", "owners", "addresses")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    owners: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epoch: _Optional[int] = ..., owners: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class SaveRequest(_message.Message):
    __slots__ = ("directory", "cut", "begin", "since", "tracks")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    TRACKS_FIELD_NUMBER: _ClassVar[int]
    directory: str
    cut: int
    begin: bool
    since: int
    tracks: bool
    def __init__(self, directory: _Optional[str] = ..., cut: _Optional[int] = ..., begin: _Optional[bool] = ..., since: _Optional[int] = ..., tracks: _Optional[bool] = ...) -> None: ...

class SaveReply(_message.Message):
    __slots__ = ("manifest",)
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    def __init__(self, manifest: _Optional[bytes] = ...) -> None: ...

class RestoreRequest(_message.Message):
    __slots__ = ("directory", "mapping", "event_time")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    MAPPING_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    directory: str
    mapping: bytes
    event_time: int
    def __init__(self, directory: _Optional[str] = ..., mapping: _Optional[bytes] = ..., event_time: _Optional[int] = ...) -> None: ...

class RestoreReply(_message.Message):
    __slots__ = ("num_rows",)
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    num_rows: int
    def __init__(self, num_rows: _Optional[int] = ...) -> None: ...

class GiveRequest(_message.Message):
    __slots__ = ("buckets", "address", "routing_epoch")
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROUTING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    buckets: bytes
    address: str
    routing_epoch: int
    def __init__(self, buckets: _Optional[bytes] = ..., address: _Optional[str] = ..., routing_epoch: _Optional[int] = ...) -> None: ...

class GiveReply(_message.Message):
    __slots__ = ("num_rows", "num_bytes", "seconds", "held_seconds")
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    HELD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    num_rows: int
    num_bytes: int
    seconds: float
    held_seconds: float
    def __init__(self, num_rows: _Optional[int] = ..., num_bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., held_seconds: _Optional[float] = ...) -> None: ...

class TakeRequest(_message.Message):
    __slots__ = ("buckets", "frames", "windows", "routing_epoch")
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    ROUTING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    buckets: bytes
    frames: bytes
    windows: bytes
    routing_epoch: int
    def __init__(self, buckets: _Optional[bytes] = ..., frames: _Optional[bytes] = ..., windows: _Optional[bytes] = ..., routing_epoch: _Optional[int] = ...) -> None: ...

class TakeReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("wants_buckets", "wants_partitions")
    WANTS_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    WANTS_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    wants_buckets: bool
    wants_partitions: bool
    def __init__(self, wants_buckets: _Optional[bool] = ..., wants_partitions: _Optional[bool] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("cluster_spec", "routing", "shard", "tables", "queue_depth", "uptime_seconds", "metrics_address", "pid", "bucket_rows", "past_partitions", "pair")
    CLUSTER_SPEC_FIELD_NUMBER: _ClassVar[int]
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    BUCKET_ROWS_FIELD_NUMBER: _ClassVar[int]
    PAST_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    cluster_spec: bytes
    routing: Routing
    shard: int
    tables: bytes
    queue_depth: int
    uptime_seconds: float
    metrics_address: str
    pid: int
    bucket_rows: bytes
    past_partitions: _containers.RepeatedScalarFieldContainer[int]
    pair: PairStatus
    def __init__(self, cluster_spec: _Optional[bytes] = ..., routing: _Optional[_Union[Routing, _Mapping]] = ..., shard: _Optional[int] = ..., tables: _Optional[bytes] = ..., queue_depth: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., metrics_address: _Optional[str] = ..., pid: _Optional[int] = ..., bucket_rows: _Optional[bytes] = ..., past_partitions: _Optional[_Iterable[int]] = ..., pair: _Optional[_Union[PairStatus, _Mapping]] = ...) -> None: ...

class PairRequest(_message.Message):
    __slots__ = ("term", "role", "other", "has_standby", "predecessor_is_dead")
    TERM_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    HAS_STANDBY_FIELD_NUMBER: _ClassVar[int]
    PREDECESSOR_IS_DEAD_FIELD_NUMBER: _ClassVar[int]
    term: int
    role: str
    other: str
    has_standby: bool
    predecessor_is_dead: bool
    def __init__(self, term: _Optional[int] = ..., role: _Optional[str] = ..., other: _Optional[str] = ..., has_standby: _Optional[bool] = ..., predecessor_is_dead: _Optional[bool] = ...) -> None: ...

class PairReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PairStatus(_message.Message):
    __slots__ = ("role", "term", "other", "has_standby", "kept", "problem")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    HAS_STANDBY_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    role: str
    term: int
    other: str
    has_standby: bool
    kept: str
    problem: str
    def __init__(self, role: _Optional[str] = ..., term: _Optional[int] = ..., other: _Optional[str] = ..., has_standby: _Optional[bool] = ..., kept: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...

class ReplicateRequest(_message.Message):
    __slots__ = ("term", "number", "frames")
    TERM_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    term: int
    number: int
    frames: bytes
    def __init__(self, term: _Optional[int] = ..., number: _Optional[int] = ..., frames: _Optional[bytes] = ...) -> None: ...

class ReplicateReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeltasRequest(_message.Message):
    __slots__ = ("next_offset", "partition")
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    next_offset: int
    partition: int
    def __init__(self, next_offset: _Optional[int] = ..., partition: _Optional[int] = ...) -> None: ...

class DeltasReply(_message.Message):
    __slots__ = ("frames", "offset", "end_offset", "end_total")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_TOTAL_FIELD_NUMBER: _ClassVar[int]
    frames: bytes
    offset: int
    end_offset: int
    end_total: int
    def __init__(self, frames: _Optional[bytes] = ..., offset: _Optional[int] = ..., end_offset: _Optional[int] = ..., end_total: _Optional[int] = ...) -> None: ...

class MarkRequest(_message.Message):
    __slots__ = ("version", "step", "data_time", "routing_epoch")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DATA_TIME_FIELD_NUMBER: _ClassVar[int]
    ROUTING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    version: str
    step: int
    data_time: float
    routing_epoch: int
    def __init__(self, version: _Optional[str] = ..., step: _Optional[int] = ..., data_time: _Optional[float] = ..., routing_epoch: _Optional[int] = ...) -> None: ...

class MarkReply(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...
