"""Figures with round numbers, and a recipe of two tables, for tests of plans."""

from typing import Any


def _layout(codec: str, dim: int, row_bytes: int, pulled: float, pushed: float) -> dict[str, Any]:
    rates = {"pull_rows_per_core_second": pulled, "push_rows_per_core_second": pushed}
    return {"codec": codec, "dim": dim, "row_bytes": row_bytes, **rates}


FIGURES: dict[str, Any] = {
    "date": "2026-01-02",
    "command": "measured by hand",
    "machine": "a machine",
    "table_rows": 1000,
    "table": [_layout("fp32", 8, 40, 2e7, 1e7), _layout("fp32", 32, 140, 1e7, 5e6), _layout("bf16", 8, 24, 4e7, 2e7)],
    "messages": {
        "pull": {
            "shard_messages_per_core_second": 1000.0,
            "shard_bytes_per_core_second": 5e8,
            "client_messages_per_core_second": 500.0,
            "client_bytes_per_core_second": 2.5e8,
            "message_bytes": 200.0,
        },
        "push": {
            "shard_messages_per_core_second": 800.0,
            "shard_bytes_per_core_second": 4e8,
            "client_messages_per_core_second": 400.0,
            "client_bytes_per_core_second": 2e8,
            "message_bytes": 300.0,
        },
    },
    "process_bytes": 100 << 20,
    "resident_share": 1.05,
    "checkpoint_bytes_per_second": 1e8,
}

_CODED = {"dim": 8, "codec": "bf16", "optimizer": "rowwise_adagrad"}
RECIPE: dict[str, Any] = {
    "name": "planned",
    "data": {"format": "csv", "root": ".", "train": "t.csv", "batch_size": 100},
    "labels": {"click": "binary"},
    "fields": {
        "user": {"type": "categorical", "table": "people"},
        "item": {"type": "categorical", "table": "things"},
        "shop": {"type": "categorical", "table": "things"},
    },
    "tables": {
        "people": {"segments": {"embedding": {"dim": 8, "optimizer": "sgd"}}},
        "things": {"segments": {"embedding": _CODED}},
    },
    "model": "lr",
}
