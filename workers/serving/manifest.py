"""What bundle.json says: tables, fields, inputs of the tower, labels, offsets, files and what was checked.

A request names columns, as the data of training did; `fields` says what becomes of them, all names resolved. A bundle
holds data only: no module is named that reading it would import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from ps.keys import MAX_SLOT
from ps.spec import ClusterSpec
from ps.strict import Spec
from ps.types import CodecName
from workers.config.fields import FeatureField, Numeric

FORMAT = 1
TOWER_FILE, TORCH_FILE, EXAMPLES_FILE = "tower.onnx", "tower.pt2", "examples.json"
ROWS_FOLDER, PARQUET_FOLDER = "rows", "parquet"
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"  # of a model or a version: the name of a folder, too
_FILE = r"^[A-Za-z0-9_%-][A-Za-z0-9_%.-]*(/[A-Za-z0-9_%-][A-Za-z0-9_%.-]*)?$"  # leads to no other folder

Count = Annotated[int, Field(ge=0, strict=True)]
Difference = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ServedTable(Spec):
    """bytes_per_row: of a row in memory, key included, without its index entry."""

    rows: Count
    bytes_per_row: Count


class TowerInput(Spec):
    """The tower's input rows_<segment>: float32 [n, len(fields), dim], a field's bag pooled into one row."""

    fields: tuple[str, ...] = Field(min_length=1)
    dim: int = Field(ge=1, strict=True)


_Score: TypeAlias = Literal["sigmoid", "exp", "identity"]
_SCORES: Final[Mapping[str, _Score]] = {"binary": "sigmoid", "weight": "exp", "real": "identity"}


class ServedLabel(Spec):
    """A task, a column of the logits. score: what is answered. binary: P(1), the logit's sigmoid. weight: exp(logit),
    the odds, which estimate the expected weight (workers/models/losses.py). real: the logit.
    """

    type: Literal["binary", "weight", "real"]

    @property
    def score(self) -> _Score:
        return _SCORES[self.type]


class FileEntry(Spec):
    """Of a file that belongs to a bundle."""

    bytes: Count
    crc32: int = Field(ge=0, lt=1 << 32, strict=True)


class TowerChecks(Spec):
    """The exported tower beside the training model, on recorded inputs. onnx, torch_export: the greatest difference of
    a logit, divided by logit_scale, the greatest logit (at least 1). torch_export: None where none was made.
    """

    samples: Count
    logit_scale: Difference
    onnx: Difference
    torch_export: Difference | None = None


class Checks(Spec):
    """What export compared. rows: by table and segment, the greatest difference between a value of training and the
    served one. scores: as TowerChecks, of served rows through the ONNX tower beside training rows through the training
    model. saturated: elements that the serving codec could not hold.
    """

    tower: TowerChecks
    rows: dict[str, dict[str, Difference]]
    scores: Difference
    saturated: Count


class Manifest(Spec):
    """bundle.json without its own checksum.

    step, data_time: of the checkpoint: steps trained, and the newest event time, seconds. created: seconds since 1970.
    spec: the training tables as they read where there is no row (ps/serving_rows.py unserved_table). serving: of the
    images in rows/. fields: column, table and slot resolved; in the order of training. inputs: by segment. model: its
    name and parameters. opset: of tower.onnx. offsets: by partition the next offset of the delta stream, or None
    where the checkpoint knows none.
    """

    format: Literal[1] = 1
    name: str = Field(pattern=NAME)
    version: str = Field(pattern=NAME)
    step: Count
    data_time: float = Field(allow_inf_nan=False)
    created: float = Field(allow_inf_nan=False)
    codec: CodecName | dict[str, dict[str, CodecName]]
    tables: dict[str, ServedTable]
    spec: ClusterSpec
    serving: ClusterSpec
    fields: dict[str, FeatureField] = Field(min_length=1)
    inputs: dict[str, TowerInput] = Field(min_length=1)
    labels: dict[str, ServedLabel] = Field(min_length=1)
    model: dict[str, Any]
    opset: int = Field(ge=1, strict=True)
    offsets: dict[str, Count] | None
    files: dict[Annotated[str, Field(pattern=_FILE)], FileEntry]
    checks: Checks

    @property
    def dense(self) -> tuple[str, ...]:
        """Fields of the input `dense`, float32 [n, len(dense)], in order; without any the tower has no such input."""
        return tuple(name for name, field in self.fields.items() if isinstance(field, Numeric) and field.is_dense)

    @property
    def slots(self) -> dict[str, int]:
        """Slot of every keyed field, in their order."""
        return {name: field.slot for name, field in self.fields.items() if field.slot is not None}

    @field_validator("spec", "serving", mode="before")
    @classmethod
    def _names_no_modules(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("psfunc_modules"):
            raise ValueError("names psfunc_modules, and a bundle has none")
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        tables = self.serving.tables
        if not tables.keys() == self.tables.keys() == self.spec.tables.keys():
            raise ValueError("tables, spec and serving name different tables")
        for name, field in self.fields.items():
            if name not in self.dense and (field.slot is None or field.table not in tables):
                raise ValueError(f"fields.{name}: needs a slot of 0..{MAX_SLOT} and one of the tables")
            if not field.column:
                raise ValueError(f"fields.{name}: needs its column")
        if len(set(self.slots.values())) < len(self.slots):
            raise ValueError("fields: two have the same slot")
        for segment, read in self.inputs.items():
            for name in read.fields:
                table = self.fields[name].table if name in self.slots else None
                found = None if table is None else tables[table].segments.get(segment)
                if found is None or found.dim != read.dim:
                    raise ValueError(f"inputs.{segment}: field {name!r} has no such segment of dim {read.dim}")
        return self
