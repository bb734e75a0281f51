"""Measured figures: what one core and one process do. benchmarks/plan_figures.py writes them; the package has some.

Rates of a table are known for some layouts; between two of a codec, the time of a row is interpolated by its bytes.
Above the longest one it grows in proportion, below the shortest it stays.
"""

from __future__ import annotations

import json
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field, ValidationError

from ps.errors import RequestError
from ps.strict import Spec

Verb: TypeAlias = Literal["pull", "push"]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TableFigure(Spec):
    """One layout: a segment of `dim`, row-wise AdaGrad, in no cache; one thread."""

    codec: str
    dim: int
    row_bytes: Annotated[int, Field(gt=0)]
    pull_rows_per_core_second: Rate
    push_rows_per_core_second: Rate


class MessageFigure(Spec):
    """One verb over gRPC. message_bytes: of request and reply together, on the network, beyond their arrays."""

    shard_messages_per_core_second: Rate
    shard_bytes_per_core_second: Rate
    client_messages_per_core_second: Rate
    client_bytes_per_core_second: Rate
    message_bytes: Rate


class Figures(Spec):
    """Of one machine. process_bytes: resident memory of a shard process without rows. resident_share: what rows add to
    it, against what their table reports.
    """

    date: date
    command: str
    machine: str
    table_rows: int
    table: tuple[TableFigure, ...] = Field(min_length=1)
    messages: dict[Verb, MessageFigure] = Field(min_length=2)
    process_bytes: Annotated[int, Field(gt=0)]
    resident_share: Rate
    checkpoint_bytes_per_second: Rate

    def rows_per_core_second(self, verb: Verb, codec: str, row_bytes: int) -> tuple[float, str]:
        """(rate of a table, the layouts that it rests on). Raises RequestError where none was measured.

        A codec that was not measured counts as the next wider one that was.
        """
        measured = {figure.codec for figure in self.table}
        series = next((each for each in (codec, "bf16", "fp16", "fp32") if each in measured), None)
        if series is None:
            raise RequestError(f"the figures know no table of codec {codec}; they have {', '.join(sorted(measured))}")
        known = sorted((each for each in self.table if each.codec == series), key=lambda each: each.row_bytes)
        lengths = [each.row_bytes for each in known]
        seconds = [
            1 / (each.pull_rows_per_core_second if verb == "pull" else each.push_rows_per_core_second) for each in known
        ]
        longer = max(1.0, row_bytes / lengths[-1])
        rate = 1 / (longer * float(np.interp(row_bytes, lengths, seconds)))
        place = int(np.searchsorted(lengths, row_bytes))
        beside = known[max(0, place - 1) : place + 1] if row_bytes not in lengths else [known[place]]
        return rate, " and ".join(f"{series} dim {each.dim}" for each in beside)


def read_figures(path: Path | None = None) -> Figures:
    """Those of the package, or of a file. Raises RequestError for one that cannot be read."""
    try:
        text = (files("workers.planning") / "figures.json").read_text() if path is None else path.read_text()
        return Figures.model_validate(json.loads(text))
    except OSError as error:
        raise RequestError(f"--figures {path}: {error.strerror}") from error
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in detail["loc"])
        raise RequestError(
            f"--figures {path}: {place}: {detail['msg']}; benchmarks/plan_figures.py writes such a file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"--figures {path}: not JSON: {error}") from error
