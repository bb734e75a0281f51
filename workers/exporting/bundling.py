"""`weir export`: a checkpoint becomes a bundle. Written beside its place and renamed when whole: a run that is killed
leaves a folder .NAME-RRRRRRRR.partial and nothing of the bundle's name.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from ps.checkpoint import Manifest as RowsManifest
from ps.checkpoint import read_manifest
from ps.errors import BundleError, RequestError
from ps.places import absolute, reason, sync_folder
from ps.serving_rows import serving_spec, unserved_table
from ps.spec import ClusterSpec
from ps.types import CodecName, Keys, Rows
from workers.config import Config, FeatureField
from workers.exporting.parquet import ParquetRows
from workers.exporting.recorded import Recorded, record
from workers.exporting.rows import ChosenRows, Sink, WrittenRows, write_rows
from workers.exporting.tower import (
    OPSET,
    TOLERANCE,
    check_packages,
    difference,
    export_tower,
    logits_of,
    onnx_logits,
)
from workers.models.model import Model
from workers.models.registry import required_segments
from workers.samples.schema import Schema
from workers.serving.bundle import Bundle, described_files, read_bundle, write_manifest
from workers.serving.manifest import (
    EXAMPLES_FILE,
    PARQUET_FOLDER,
    ROWS_FOLDER,
    TORCH_FILE,
    TOWER_FILE,
    Checks,
    Manifest,
    ServedLabel,
    ServedTable,
    TowerInput,
)
from workers.serving.scores import scores_of
from workers.training.dense import load_dense
from workers.training.job import check, model_of
from workers.training.position import Position, read_position

RECORDED_SAMPLES = 1024  # that scores are compared on
EXAMPLE_SAMPLES = 16  # of them that stand in the bundle
Codec = CodecName | Mapping[str, Mapping[str, CodecName]]
Report = Callable[[int, int], None]  # rows written so far, rows in all


def export(
    config: Config,
    checkpoint: str | Path,
    out: str | Path,
    *,
    codec: Codec = "fp32",
    version: str | None = None,
    parquet: bool = False,
    report: Report = lambda done, total: None,
) -> Bundle:
    """Make the bundle `out` of a checkpoint of this recipe (a folder or a URI; increments, too).

    codec: of all segments, or by table and segment. version: default step-<step>. parquet: the rows as Parquet, too.

    Raises RequestError where packages are missing, the recipe is not the checkpoint's or `out` exists, CheckpointError
    for a damaged checkpoint, BundleError where what would serve does not score as training does. Nothing is left then.
    """
    check_packages()
    target = Path(os.path.abspath(out))
    if target.exists():
        raise RequestError(f"{out} exists, and a bundle is never changed: give another folder, or remove this one")
    schema = Schema(config)
    rows = read_manifest(absolute(checkpoint))
    _check_tables(config, rows)
    serving = serving_spec(rows.spec, codec)
    with torch.random.fork_rng(devices=[]):  # a training in this process draws as if nothing had been built
        check(config, schema)
        model, position = _restored(config, schema, checkpoint)
    recorded = record(config, schema, RECORDED_SAMPLES)
    with _written_beside(target) as folder:
        trained, served = ChosenRows(recorded.keys, rows.spec), ChosenRows(recorded.keys, rows.spec)
        with ExitStack() as stack:
            sinks: dict[str, list[Sink]] = {"training": [trained.see], "served": [served.see, _counting(rows, report)]}
            if parquet:
                sinks["served"].append(stack.enter_context(ParquetRows(folder / PARQUET_FOLDER, serving)))
            written = write_rows(rows, serving, folder / ROWS_FOLDER, sinks)
        checks = _write_tower(folder, model, config, recorded, trained.values, served.values, written)
        is_exact = {segment.codec for table in serving.tables.values() for segment in table.segments.values()} == {
            "fp32"
        }
        if is_exact and not checks.scores <= TOLERANCE:
            raise BundleError(
                f"{out}: served rows score by {checks.scores:.2g} of the greatest logit differently from training on "
                f"{checks.tower.samples} recorded samples, more than {TOLERANCE:g}; nothing was written"
            )
        _sync(folder)
        offsets = rows.delta_offsets
        manifest = Manifest(
            name=config.name,
            version=version or f"step-{position.step}",
            step=position.step,
            data_time=position.event_time,
            created=time.time(),
            codec=codec if isinstance(codec, str) else {name: dict(each) for name, each in codec.items()},
            tables={
                name: ServedTable(rows=count, bytes_per_row=written.row_bytes[name])
                for name, count in written.rows.items()
            },
            spec=_unserved(rows.spec),
            serving=serving,
            fields=resolved_fields(config),
            inputs=tower_inputs(config),
            labels=served_labels(config),
            model=dict(config.model),
            opset=OPSET,
            offsets=None if offsets is None else {str(partition): offset for partition, offset in offsets.items()},
            files=described_files(folder),
            checks=checks,
        )
        write_manifest(folder, manifest)
    return read_bundle(target)


def resolved_fields(config: Config) -> dict[str, FeatureField]:
    """The recipe's fields with column, table and slot named."""
    slots = config.slots()
    return {
        name: field.model_copy(
            update={"column": config.column_of(name)}
            | ({"table": config.table_of(name), "slot": slots[name]} if name in slots else {})
        )
        for name, field in config.fields.items()
    }


def tower_inputs(config: Config) -> dict[str, TowerInput]:
    """By segment that the recipe's model reads: the fields whose table has it, in order."""
    found = {}
    for segment in required_segments(config.model["name"], len(config.labels)):
        fields = tuple(name for name in config.slots() if segment in config.tables[config.table_of(name)].segments)
        found[segment] = TowerInput(fields=fields, dim=config.tables[config.table_of(fields[0])].segments[segment].dim)
    return found


def served_labels(config: Config) -> dict[str, ServedLabel]:
    return {name: ServedLabel(type=label.type) for name, label in config.labels.items()}


def _write_tower(
    folder: Path,
    model: Model,
    config: Config,
    recorded: Recorded,
    trained: Mapping[str, Rows],
    served: Mapping[str, Rows],
    written: WrittenRows,
) -> Checks:
    """Tower and examples. trained, served: the rows of the recorded keys."""
    inputs = recorded.inputs(config, trained)
    tower = export_tower(model, inputs, folder / TOWER_FILE, torch_path=folder / TORCH_FILE)
    expected = logits_of(model, inputs)
    found = onnx_logits(folder / TOWER_FILE, recorded.inputs(config, served))
    labels = served_labels(config)
    examples = {
        "split": recorded.split,
        "columns": {column: values[:EXAMPLE_SAMPLES] for column, values in recorded.columns.items()},
        "logits": expected[:EXAMPLE_SAMPLES].tolist(),
        "scores": dict(zip(labels, scores_of(expected[:EXAMPLE_SAMPLES], labels).T.tolist(), strict=True)),
    }
    (folder / EXAMPLES_FILE).write_text(json.dumps(examples))
    return Checks(
        tower=tower,
        rows=written.differences,
        scores=difference(found, expected),
        saturated=written.saturated,
    )


def _restored(config: Config, schema: Schema, checkpoint: str | Path) -> tuple[Model, Position]:
    """The tower of a checkpoint, and where training stood."""
    position = read_position(checkpoint)[0]
    model = model_of(config, schema)
    load_dense(checkpoint, model)
    return model, position


def _check_tables(config: Config, rows: RowsManifest) -> None:
    """Raises RequestError unless rows that the recipe would read are those of the checkpoint."""
    for name in sorted(config.tables.keys() | rows.spec.tables.keys()):
        own, there = config.tables.get(name), rows.spec.tables.get(name)
        if own is None or there is None or unserved_table(own) != unserved_table(there):
            raise RequestError(
                f"tables.{name}: differs from that of checkpoint {rows.directory} in its segments, initializers or "
                "codecs; export with the recipe that it was trained with (config.json of its run)"
            )


def _unserved(spec: ClusterSpec) -> ClusterSpec:
    """Without optimizers: a bundle names no module that reading it would import."""
    tables = {name: unserved_table(table) for name, table in spec.tables.items()}
    return ClusterSpec(tables=tables, num_buckets=spec.num_buckets, seed=spec.seed)


def _counting(rows: RowsManifest, report: Report) -> Sink:
    done, total = 0, sum(rows.rows.values())

    def count(table: str, keys: Keys, values: Rows) -> None:
        nonlocal done
        done += len(keys)
        report(done, total)

    return count


@contextmanager
def _written_beside(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` at the end, or is removed."""
    folder = target.with_name(f".{target.name}-{os.urandom(4).hex()}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise BundleError(f"cannot write {target}: {reason(error)}; free space or choose another folder") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Make files last that others have written."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
