"""How a prediction server runs: where it listens, what it takes in at once, and what it writes down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from ps.byte_sizes import ByteSize
from ps.security import SecurityOptions
from ps.strict import Spec
from workers.config.errors import ConfigError, dotted, explain
from workers.config.load import set_value
from workers.cores import usable_cores

MOST_RUNS = 4  # unless more are asked for: decoding and encoding are of one interpreter


class LogOptions(Spec):
    """directory: of the prediction log. rate: share of the requests that are logged, chosen by their request_id.
    file_bytes, files: a file is closed at this size, and the oldest beyond so many is deleted.
    """

    directory: str
    rate: float = Field(default=0.01, gt=0, le=1)
    file_bytes: ByteSize = Field(default=64 << 20, ge=1 << 16)
    files: int = Field(default=16, ge=1)


class ServeOptions(Spec):
    """host: loopback by default. grpc_port, http_port: 0 takes a free one. threads: that compute one run of the tower.
    runs: how many of these at once; default: as many as the
    process's cores have room for, at most 4.

    max_candidates, max_body_bytes: of one request. queue, queue_candidates: what may wait; more is refused at once.
    batch_candidates: of small requests that are scored in one run. timeout_seconds: of requests that name none.
    drain_delay_seconds: after SIGTERM, how long requests are still taken while readiness says no. drain_seconds: how
    long those that were taken may then last. security: as for shards (docs/security.md).
    deltas: the directory of the stream that rows go on with (cluster.deltas.directory). shards: the addresses
    of some shards, with commas, where there is no such directory here: they stream it; shard_security: theirs. Neither:
    rows stay as the bundle has them.
    """

    host: str = "127.0.0.1"
    grpc_port: int = Field(default=8500, ge=0, le=65535)
    http_port: int = Field(default=8501, ge=0, le=65535)
    threads: int = Field(default=1, ge=1, le=1024)
    runs: int | None = Field(default=None, ge=1, le=1024)
    max_candidates: int = Field(default=10_000, ge=1, le=1 << 24)
    max_body_bytes: ByteSize = Field(default=16 << 20, ge=1 << 10, le=1 << 30)
    queue: int = Field(default=64, ge=1, le=4096)
    queue_candidates: int = Field(default=100_000, ge=1)
    batch_candidates: int = Field(default=512, ge=1)
    timeout_seconds: float = Field(default=2.0, gt=0, le=3600)
    drain_delay_seconds: float = Field(default=0.0, ge=0, le=600)
    drain_seconds: float = Field(default=30.0, ge=0, le=3600)
    security: SecurityOptions = Field(default_factory=lambda: SecurityOptions.model_validate({}))
    log: LogOptions | None = None
    deltas: str | None = None
    shards: str | None = None
    shard_security: SecurityOptions = Field(default_factory=lambda: SecurityOptions.model_validate({}))

    @property
    def num_runs(self) -> int:
        """Of the tower at once."""
        return self.runs or min(MOST_RUNS, max(1, usable_cores() // self.threads))

    @model_validator(mode="after")
    def _one_stream(self) -> ServeOptions:
        if self.deltas and self.shards:
            raise ValueError("'deltas' and 'shards' are two ways to the same stream; give one")
        return self


class ReplicaOptions(Spec):
    """How `weir replica` runs. host: loopback by default. port, metrics_port: 0 takes a free one. threads: calls that
    are answered at the same time. security: of its own port, and of the shards that it follows.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8600, ge=0, le=65535)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    threads: int = Field(default=8, ge=1, le=1024)
    security: SecurityOptions = Field(default_factory=lambda: SecurityOptions.model_validate({}))


Options = TypeVar("Options", bound=Spec)


def read_options(given: dict[str, Any], overrides: Iterable[str], kind: type[Options]) -> Options:
    """given: of the command line, what is None is left out. overrides: of the form `security.tls.key=PATH`. Raises
    ConfigError.
    """
    data = {name: value for name, value in given.items() if value is not None}
    for override in overrides:
        set_value(data, override)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        location, text = explain(error, kind, data)
        raise ConfigError(f"{dotted(location)}: {text}" if location else text) from None
