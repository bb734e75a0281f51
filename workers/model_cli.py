"""`weir model`: the versions of a model directory, and which of them serves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ps.errors import RequestError
from workers.answering import Json, answering
from workers.serving.versions import Models, Pointer, Version

app = typer.Typer(no_args_is_help=True, help="Versions of a model directory: list, publish, roll back.")

ModelsPath = Annotated[Path, typer.Argument(metavar="MODELS", help="a model directory", show_default=False)]


@app.command("list")
def list_versions(models: ModelsPath, as_json: Json = False) -> None:
    """All versions, the oldest first; the one that serves is marked."""
    with answering(as_json, _as_table) as answer:
        if not models.is_dir():
            raise RequestError(f"{models} is no folder; `weir model publish` makes a model directory")
        directory = Models(models)
        pointer, versions = directory.current(), directory.versions()
        answer({**_pointer(directory, pointer), "versions": [_version(each, pointer) for each in versions]})


@app.command()
def publish(
    models: ModelsPath,
    version: Annotated[str, typer.Argument(help="a bundle's folder, or a version that is there", show_default=False)],
    name: Annotated[str | None, typer.Option("--as", help="its name as a version [the bundle's]")] = None,
    force_schema: Annotated[bool, typer.Option(help="even where its requests are other than those of now")] = False,
    keep: Annotated[int | None, typer.Option(min=1, help="then remove all but the newest N [remove none]")] = None,
    as_json: Json = False,
) -> None:
    """Check a version and have it serve. After a rollback this lets rows go on again."""
    from workers.serving.publishing import publish as run
    from workers.serving.retention import prune

    with answering(as_json) as answer:
        directory = Models(models)
        pointer = run(directory, version, name=name, forces_schema=force_schema)
        removed = [] if keep is None else prune(directory, keep)
        answer({**_pointer(directory, pointer), "removed": removed})


@app.command()
def rollback(
    models: ModelsPath,
    version: Annotated[str | None, typer.Argument(help="[the one that served before]", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Have an earlier version serve, its rows as they were then. What a trainer publishes waits from then on."""
    with answering(as_json) as answer:
        directory = Models(models)
        answer(_pointer(directory, directory.rollback(version)))


def _pointer(directory: Models, pointer: Pointer | None) -> dict[str, Any]:
    if pointer is None:
        return {"models": str(directory.directory), "current": None}
    return {
        "models": str(directory.directory),
        "current": pointer.version,
        "pinned": pointer.pinned,
        "serial": pointer.serial,
        "changed": _time(pointer.changed),
        "before": pointer.history[-1] if pointer.history else None,
    }


def _version(version: Version, pointer: Pointer | None) -> dict[str, Any]:
    return {
        "version": version.name,
        "number": version.number,
        "bundle": version.bundle,
        "step": version.step,
        "data_time": version.data_time,
        "created": version.created,
        "markers": version.markers and {str(partition): offset for partition, offset in version.markers.items()},
        "is_current": pointer is not None and pointer.version == version.name,
    }


def _as_table(answer: dict[str, Any]) -> str:
    lines = [("", "version", "rows of", "step", "data until", "created")]
    for each in answer["versions"]:
        mark = "" if not each["is_current"] else "pinned" if answer["pinned"] else "serves"
        own = each["bundle"] == each["version"]
        times = (_time(each["data_time"]), _time(each["created"]))
        lines.append((mark, each["version"], "itself" if own else each["bundle"], str(each["step"]), *times))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "".join("  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in lines)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) if seconds > 0 else "-"
