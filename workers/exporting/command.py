"""`weir export` as a person types it: options checked, progress shown, and what was made."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ps.errors import RequestError
from ps.types import CodecName
from workers.config import Config
from workers.config.errors import nearest
from workers.exporting.bundling import export as make
from workers.serving.manifest import NAME


def export(
    config: Config, checkpoint: str, out: Path, *, codec: str, version: str | None, parquet: bool
) -> dict[str, Any]:
    """The answer of `weir export`. Raises RequestError, and what workers.exporting.export raises."""
    if codec not in get_args(CodecName):
        raise RequestError(f"--codec {codec}: unknown codec" + nearest(codec, get_args(CodecName)))
    if version is not None and not re.fullmatch(NAME, version):
        raise RequestError(f"--version {version}: must be letters, digits, '.', '_' and '-', at most 128 of them")
    began = time.monotonic()
    columns = (TextColumn("rows"), BarColumn(bar_width=30), TextColumn("{task.completed:,.0f}"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
    with bar:
        task = bar.add_task("rows", total=None)
        bundle = make(
            config,
            checkpoint,
            out,
            codec=cast(CodecName, codec),
            version=version,
            parquet=parquet,
            report=lambda done, total: bar.update(task, completed=done, total=total),
        )
    manifest = bundle.manifest
    return {
        "bundle": str(out),
        "name": manifest.name,
        "version": manifest.version,
        "step": manifest.step,
        "codec": codec,
        "rows": sum(table.rows for table in manifest.tables.values()),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "checks": manifest.checks.model_dump(mode="json"),
        "seconds": round(time.monotonic() - began, 3),
    }
