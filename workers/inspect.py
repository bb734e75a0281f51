"""What a checkpoint holds, verified byte by byte; or the row of one value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ps.chain import find_row, verify
from ps.checkpoint import read_manifest
from ps.errors import RequestError
from ps.keys import hash_texts, pack
from workers.config import Config
from workers.config.errors import nearest
from workers.slots import SLOT_STATISTICS, RecordedSlots, by_name, names_of

CONFIG_FILE = "config.json"


def inspect(path: Path | str, key: str | None = None, *, slots: bool = False) -> dict[str, Any]:
    """The answer of `weir inspect`. key: FIELD=VALUE as the data has it. slots: also the statistics of every slot.

    path: or a URI (ps/places.py). Raises RequestError for one without a checkpoint, a damaged one, or an unknown field.
    """
    return _row(path, key) if key else _summary(path, slots=slots)


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
        "files": {
            part["file"]: {"bytes": part["bytes"], "crc32": f"{part['crc32']:08x}"} for part in found.manifest.parts
        },
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


def _row(path: Path | str, key: str) -> dict[str, Any]:
    field, equals, value = key.partition("=")
    if not equals:
        raise RequestError(f"--key {key}: must be FIELD=VALUE, as in user=123")
    config = _config(path)
    if config is None:
        raise RequestError(f"{path} lies in no run's directory ({CONFIG_FILE} is not above it), so fields are unknown")
    slots = config.slots()
    if field not in slots:
        raise RequestError(f"--key {key}: unknown field '{field}'" + nearest(field, slots))
    packed = int(pack(slots[field], hash_texts([value]))[0])
    table = config.table_of(field)
    row = find_row(path, table, packed)
    found: dict[str, Any] = {"key": f"{packed:#018x}", "slot": slots[field], "table": table, "exists": row is not None}
    if row is not None:
        values = {name: [round(float(v), 6) for v in segment] for name, segment in row.values.items()}
        found |= {"bucket": row.bucket, "shard": row.shard, "values": values, "bytes": len(row.image) + 8}
    return found


def _config(path: Path | str) -> Config | None:
    """The config of the run that the checkpoint belongs to; None where it lies elsewhere."""
    path = Path(path)
    for folder in (path, *path.absolute().parents):
        path = folder / CONFIG_FILE
        if path.is_file():
            try:
                return Config.model_validate(json.loads(path.read_text()))
            except (OSError, ValueError, RecursionError) as error:
                said = " ".join(str(error).split())[:300]
                raise RequestError(f"{path}: the run's configuration cannot be read: {said}") from error
    return None


def _slot_names(path: Path | str) -> dict[int, str]:
    config = _config(path)
    return {} if config is None else names_of(config)
