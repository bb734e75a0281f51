"""The whole configuration of a job, and what its parts must agree on."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from ps.delta_options import DeltaOptions
from ps.durability import Durability
from ps.errors import RequestError
from ps.mapping import read_mapping
from ps.options import ClientOptions
from ps.places import is_uri
from ps.security import SecurityOptions
from ps.spec import ClusterSpec, TableSpec, with_modules
from workers.config.data import Data
from workers.config.errors import nearest
from workers.config.fields import Categorical, FeatureField, LabelField, Multi, Numeric
from workers.config.section import Section
from workers.config.serving import Serving
from workers.config.train import Train

BUCKETS_PER_SHARD = 64


class Workers(Section):
    """count: processes that compute; cpus: what each asks of Ray. max_restarts: how often a group of several is started
    anew after a worker died; at staleness 0 from the newest checkpoint, else with the rows as they are and a snapshot
    of the tower, of which one is written every snapshot_seconds. metrics_port: of the first worker's Prometheus
    endpoint on the loopback, the others take the ports after it; 0: free ones; default: no endpoint.
    """

    count: int = Field(default=1, ge=1)
    max_restarts: int = Field(default=3, ge=0)
    snapshot_seconds: float = Field(default=10.0, gt=0)
    cpus: float = Field(default=0.5, gt=0)
    metrics_port: int | None = Field(default=None, ge=0, le=65535)


class Cluster(Section):
    """num_buckets never changes after creation; default: 256, or what gives every shard 64.

    placement: shards in this process, in local processes, or Ray actors. ray_address: host:port of a running Ray;
    default: $RAY_ADDRESS, or the one that runs on this machine, or a small one for the job alone. existing_rows: what
    a job that starts anew does with rows that a long-lived cluster holds already: refuse, delete them, or train on
    from them. client: options of ps.client. durability: what survives which failure (ps/durability.py). deltas:
    what of the rows is published for serving (ps/delta_options.py). security: token, certificates and limits of shards
    and their clients.
    """

    shards: int = Field(default=1, ge=1)
    placement: Literal["inprocess", "process", "ray"] = "inprocess"
    num_buckets: int | None = None
    cpus_per_shard: float = Field(default=0.5, gt=0)
    workers: Workers = Workers()
    ray_address: str | None = None
    durability: Durability = Durability()
    deltas: DeltaOptions | None = None
    existing_rows: Literal["error", "clear", "keep"] = "error"
    security: SecurityOptions = Field(default_factory=lambda: SecurityOptions.model_validate({}))
    client: ClientOptions = Field(default_factory=lambda: ClientOptions.model_validate({}))

    @field_validator("client")
    @classmethod
    def _group_is_ours(cls, client: ClientOptions) -> ClientOptions:
        if client.group is not None:
            raise ValueError("'group' is given by the job itself, a rank to each worker; remove it")
        return client

    @model_validator(mode="after")
    def _buckets(self) -> Cluster:
        buckets = self.num_buckets
        if buckets is not None and (not self.shards <= buckets <= 1 << 20 or buckets & (buckets - 1)):
            raise ValueError(
                f"num_buckets must be a power of two between the number of shards and {1 << 20}, found {buckets} for"
                f" {self.shards} shards"
            )
        return self

    @property
    def buckets(self) -> int:
        """num_buckets, or its default."""
        return self.num_buckets or max(256, 1 << (BUCKETS_PER_SHARD * self.shards - 1).bit_length())


def _readable(mapping: dict[str, Any]) -> dict[str, Any]:
    try:
        read_mapping(mapping)
    except RequestError as error:
        raise ValueError(str(error)) from None
    return mapping


def _local(folder: str) -> str:
    if is_uri(folder):
        raise ValueError(
            f"found {folder}; curves and logs are appended to, in a folder of this machine: give a path here, "
            "and the URI as checkpoint.directory"
        )
    return folder


class Checkpoint(Section):
    """directory: where they lie, a path or a URI that pyarrow opens, which this process and all shards reach; default:
    in the run's folder. keep: how many of the newest. resume: auto goes on from the newest one of the latest unfinished
    run.

    start_from: a checkpoint, of this recipe or of another, whose rows and tower a new run begins with. mapping: where
    names of tables and segments differ there (ps/mapping.py), or in the checkpoint that is evaluated. incremental: of
    rows write only those that have changed since the one before; after max_increments of them, all.
    """

    directory: str | None = None
    every_steps: int | None = Field(default=None, ge=1)
    every_minutes: float | None = Field(default=None, gt=0)
    keep: int = Field(default=2, ge=1)
    resume: Literal["auto", "never"] = "auto"
    incremental: bool = False
    max_increments: int = Field(default=8, ge=1)
    start_from: str | None = None
    mapping: Annotated[dict[str, Any], AfterValidator(_readable)] = {}

    @property
    def is_regular(self) -> bool:
        """Whether checkpoints are written while training goes on."""
        return bool(self.every_steps or self.every_minutes)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Config(Section):
    """A job. Made by load_config.

    click: the label that counts as a click where tables count shows and clicks; default: the first one. group: column
    whose hash groups samples for GAUC. event_time: column of seconds. sample_weight: column of weights >= 0. model: its
    name and its parameters, which the model itself checks. runs: folder of curves, logs and, unless they have a
    directory of their own, checkpoints.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    data: Data
    labels: dict[str, LabelField] = Field(min_length=1)
    fields: dict[str, FeatureField] = Field(min_length=1)
    click: str | None = None
    group: str | None = None
    event_time: str | None = None
    sample_weight: str | None = None
    tables: dict[str, TableSpec] = {}
    model: Annotated[dict[str, Any], BeforeValidator(_named)]
    train: Train = Train()
    cluster: Cluster = Cluster()
    checkpoint: Checkpoint = Checkpoint()
    serving: Serving | None = None
    psfunc_modules: tuple[str, ...] = ()
    runs: Annotated[str, AfterValidator(_local)] = "runs"

    @model_validator(mode="before")
    @classmethod
    def _load_modules(cls, given: Any) -> Any:
        return with_modules(given)

    @field_validator("model")
    @classmethod
    def _has_name(cls, model: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(model.get("name"), str):
            raise ValueError("needs 'name', the name of a model")
        return model

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        slots = self.slots()
        if not slots:
            raise ValueError("fields: all are dense numbers; at least one must make keys, say with transform: buckets")
        for name in slots:
            table = self.fields[name].table
            if table is None and len(self.tables) != 1:
                allowed = ", ".join(self.tables) or "none, for 'tables' is empty"
                raise ValueError(f"fields.{name}.table: missing; allowed: {allowed}")
            if table is not None and table not in self.tables:
                raise ValueError(f"fields.{name}.table: unknown table '{table}'" + nearest(table, self.tables))
        unused = set(self.tables) - {self.table_of(name) for name in slots}
        if unused:
            raise ValueError(f"tables.{min(unused)}: no field uses this table; remove it or name it in a field")
        for name, spec in self.tables.items():
            try:
                spec.with_slots(slots)
            except ValueError as error:
                raise ValueError(f"tables.{name}.{error}") from error
        if self.cluster.durability.mode == "checkpoint" and not self.checkpoint.is_regular:
            raise ValueError(
                "cluster.durability.mode: checkpoint needs regular ones: checkpoint.every_steps or every_minutes"
            )
        for place, folder in (
            ("cluster.durability", self.cluster.durability.directory),
            ("cluster.deltas", self.cluster.deltas and self.cluster.deltas.directory),
        ):
            if folder and is_uri(folder):
                raise ValueError(f"{place}.directory: found {folder}; must be a folder of the shards' machines")
        if self.serving is not None and self.cluster.deltas is None:
            raise ValueError(
                "serving: towers are published beside a stream of the rows' changes; set cluster.deltas, {} will do"
            )
        if self.click is not None and self.click not in self.labels:
            raise ValueError(f"click: unknown label '{self.click}'" + nearest(self.click, self.labels))
        self._check_columns()
        stopping = self.train.early_stopping
        if stopping is not None:
            metric, _, task = stopping.metric.partition(".")
            if task and task not in self.labels:
                raise ValueError(f"train.early_stopping.metric: unknown label '{task}'" + nearest(task, self.labels))
            if metric == "gauc" and self.group is None:
                raise ValueError("train.early_stopping.metric: gauc needs 'group', the column of the groups")
            if "valid" not in self.data.splits:
                raise ValueError("train.early_stopping: needs data.valid, the split that it watches")
        return self

    def _check_columns(self) -> None:
        """Columns that the file itself makes known: names given for files without a header, or those of the generated
        log.
        """
        known = list(self.data.columns)
        if self.data.format == "generated":
            known = self.data.log.columns()
        if not known:
            return
        for place, column in self.columns().items():
            if column not in known:
                raise ValueError(f"{place}: the data has no column '{column}'" + nearest(column, known))

    def columns(self) -> dict[str, str]:
        """The columns that the job reads, by the place in the configuration that names them."""
        named = {f"labels.{name}": label.column or name for name, label in self.labels.items()}
        named |= {f"fields.{name}": self.column_of(name) for name in self.fields}
        for place in ("group", "event_time", "sample_weight"):
            if (column := getattr(self, place)) is not None:
                named[place] = column
        return named

    def column_of(self, field: str) -> str:
        """The data's column of a field."""
        return self.fields[field].column or field

    def table_of(self, field: str) -> str:
        """The table that holds the rows of a keyed field."""
        return self.fields[field].table or next(iter(self.tables))

    def slots(self) -> dict[str, int]:
        """Slot of every keyed field, in their order: the one given, else the smallest that no other field has.

        Raises ValueError for one used twice."""
        keyed: dict[str, Categorical | Multi | Numeric] = {
            name: field for name, field in self.fields.items() if not (isinstance(field, Numeric) and field.is_dense)
        }
        owner: dict[int, str] = {}
        for name, field in keyed.items():
            if field.slot is not None and owner.setdefault(field.slot, name) != name:
                raise ValueError(
                    f"fields.{name}.slot: slot {field.slot} is already that of field '{owner[field.slot]}'"
                )
        free = (slot for slot in range(1 << 12) if slot not in owner)
        slots: dict[str, int] = {}
        for name, field in keyed.items():
            slot = next(free, None) if field.slot is None else field.slot
            if slot is None:
                raise ValueError(f"fields.{name}: there are more than 4096 keyed fields, and a slot is at most 4095")
            slots[name] = slot
        return slots

    def cluster_spec(self) -> ClusterSpec:
        """What the shards must agree on."""
        slots = self.slots()
        return ClusterSpec(
            tables={name: spec.with_slots(slots) for name, spec in self.tables.items()},
            num_buckets=self.cluster.buckets,
            seed=self.seed,
            psfunc_modules=self.psfunc_modules,
            durability=self._durability(),
            deltas=self._deltas(),
        )

    def _deltas(self) -> DeltaOptions | None:
        """With their folder from the root, or by default one of the job."""
        given = self.cluster.deltas
        if given is None:
            return None
        return given.model_copy(update={"directory": os.path.abspath(given.directory or f"{self.runs}/deltas")})

    def _durability(self) -> Durability:
        """With its folder from the root, or by default one of the job."""
        given = self.cluster.durability
        if not given.keeps_journal:
            return given
        return given.model_copy(update={"directory": os.path.abspath(given.directory or f"{self.runs}/journals")})
