"""What a checkpoint or a bundle holds, verified byte by byte; or the row of one value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ps.chain import find_row, verify
from ps.checkpoint import read_manifest
from ps.errors import BundleError, RequestError
from ps.keys import hash_texts, pack
from ps.places import absolute, inside, joined, open_place
from workers.config import Config
from workers.config.errors import nearest
from workers.serving.bundle import Bundle, is_bundle, read_bundle
from workers.slots import SLOT_STATISTICS, RecordedSlots, by_name, names_of
from workers.training.runs import CONFIG_FILE


def inspect(path: Path | str, key: str | None = None, *, slots: bool = False) -> dict[str, Any]:
    """The answer of `weir inspect`. key: FIELD=VALUE as the data has it. slots: also the statistics of every slot.

    path: or a URI (ps/places.py). Raises RequestError for one without a checkpoint, a damaged one, or an unknown field.
    """
    if is_bundle(path):
        bundle = read_bundle(path)
        if key:
            fields = {name: (slot, str(bundle.fields[name].table)) for name, slot in bundle.manifest.slots.items()}
            return _row(bundle.rows_directory, key, fields)
        return _bundle_summary(bundle, slots=slots)
    if key:
        return _row(path, key, _fields_of(path))
    return _summary(path, slots=slots)


def _bundle_summary(bundle: Bundle, *, slots: bool) -> dict[str, Any]:
    """Of every file of a bundle, read."""
    bundle.verify()
    manifest, names = bundle.manifest, {slot: name for name, slot in bundle.manifest.slots.items()}
    recorded = RecordedSlots(bundle.serving_spec)
    found = verify(bundle.rows_directory, recorded.add if slots else lambda record: None)
    if found.manifest.spec != bundle.serving_spec:
        raise BundleError(f"{bundle.rows_directory}: its rows are of another spec than the bundle's; export again")
    summary: dict[str, Any] = {
        "bundle": str(bundle.directory),
        "verified": True,
        "name": manifest.name,
        "version": manifest.version,
        "step": manifest.step,
        "created": datetime.fromtimestamp(manifest.created, UTC).isoformat(timespec="seconds"),
        "data_time": datetime.fromtimestamp(manifest.data_time, UTC).isoformat(timespec="seconds"),
        "codec": manifest.codec,
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "tables": {
            table: {
                "rows": rows,
                "bytes_per_row": manifest.tables[table].bytes_per_row,
                "segments": {
                    name: f"{segment.dim} x {segment.codec}"
                    for name, segment in bundle.serving_spec.tables[table].segments.items()
                },
                "slots": {names.get(slot, str(slot)): count for slot, count in sorted(found.slots[table].items())},
            }
            for table, rows in found.rows.items()
        },
        "model": manifest.model,
        "labels": {name: f"{label.type}, {label.score} of the logit" for name, label in manifest.labels.items()},
        "opset": manifest.opset,
        "offsets": manifest.offsets,
        "checks": manifest.checks.model_dump(mode="json"),
        "files": _listed({name: (file.bytes, file.crc32) for name, file in manifest.files.items()}),
    }
    if slots:
        summary[SLOT_STATISTICS] = {table: by_name(each, names) for table, each in recorded.summaries().items()}
    return summary


def _summary(path: Path | str, *, slots: bool) -> dict[str, Any]:
    names = _slot_names(path)
    if slots:
        recorded = RecordedSlots(read_manifest(path).spec)
        found = verify(path, recorded.add)
    else:
        found = verify(path)
    summary: dict[str, Any] = {
        "checkpoint": str(path),
        "verified": True,
        "bytes": found.num_bytes,
        "shards": len(found.manifest.parts),
        "buckets": found.manifest.spec.num_buckets,
        "tables": {
            table: {
                "rows": rows,
                "segments": {
                    name: f"{segment.dim} x {segment.codec}, {segment.optimizer.name} in {segment.state_codec}"
                    for name, segment in found.manifest.spec.tables[table].segments.items()
                },
                "slots": {names.get(slot, str(slot)): count for slot, count in sorted(found.slots[table].items())},
                "clients": found.num_clients[table],
            }
            for table, rows in found.rows.items()
        },
        "files": _listed({part["file"]: (part["bytes"], part["crc32"]) for part in found.manifest.parts}),
    }
    if found.manifest.base is not None:
        summary["stands_on"] = [
            {
                "checkpoint": member.directory,
                "holds": "all" if member.base is None else "changes",
                "bytes": member.num_bytes,
                "rows": sum(sum(part["rows"].values()) for part in member.parts),
            }
            for member in found.manifest.chain[:-1]
        ]
    if slots:
        summary[SLOT_STATISTICS] = {table: by_name(each, names) for table, each in recorded.summaries().items()}
    return summary


def _listed(files: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Of each file bytes and crc32."""
    return {name: {"bytes": num_bytes, "crc32": f"{crc:08x}"} for name, (num_bytes, crc) in files.items()}


def _row(path: Path | str, key: str, fields: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    """fields: by name, slot and table."""
    field, equals, value = key.partition("=")
    if not equals:
        raise RequestError(f"--key {key}: must be FIELD=VALUE, as in user=123")
    if field not in fields:
        raise RequestError(f"--key {key}: unknown field '{field}'" + nearest(field, fields))
    slot, table = fields[field]
    packed = int(pack(slot, hash_texts([value]))[0])
    row = find_row(path, table, packed)
    found: dict[str, Any] = {"key": f"{packed:#018x}", "slot": slot, "table": table, "exists": row is not None}
    if row is not None:
        values = {name: [round(float(v), 6) for v in segment] for name, segment in row.values.items()}
        found |= {"bucket": row.bucket, "shard": row.shard, "values": values, "bytes": len(row.image) + 8}
    return found


def _fields_of(path: Path | str) -> dict[str, tuple[int, str]]:
    """Slot and table of each field of the run that a checkpoint belongs to."""
    config = _config(path)
    if config is None:
        raise RequestError(f"{path} lies in no run's directory ({CONFIG_FILE} is not above it), so fields are unknown")
    return {name: (slot, config.table_of(name)) for name, slot in config.slots().items()}


def _config(path: Path | str) -> Config | None:
    """The config of the run that the checkpoint belongs to; None where it lies elsewhere."""
    folder, above = None, absolute(path)
    while folder != above:
        folder, above = above, joined(above, "..")
        try:
            with open_place(folder).open(CONFIG_FILE) as file:
                return Config.model_validate(json.loads(file.read()))
        except OSError:  # none there, or a folder above the run that we may not read
            continue
        except (ValueError, RecursionError) as error:
            said = " ".join(str(error).split())[:300]
            raise RequestError(
                f"{inside(folder, CONFIG_FILE)}: the run's configuration cannot be read: {said}"
            ) from error
    return None


def _slot_names(path: Path | str) -> dict[int, str]:
    config = _config(path)
    return {} if config is None else names_of(config)
