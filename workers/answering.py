"""How a command answers: text on stderr, or one JSON object on stdout; an error is one line and an exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, TextIO

import typer

from ps.errors import RequestError, WeirError
from workers.text import as_yaml
from workers.training.runs import InterruptedRunError

Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]


@contextmanager
def answering(
    as_json: bool, shown: Callable[[dict[str, Any]], str] = as_yaml
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A place to put the result, which `shown` makes text of; an error becomes one clear line on stderr and
    the exit status that belongs to it.

    Whatever else prints, such as Ray's threads, goes to stderr: stdout is the result's.
    """
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            yield lambda result: _print(result, shown, stdout if as_json else None)
        except RequestError as error:
            _fail(str(error), 2)
        except InterruptedRunError as error:
            _fail(str(error), 130)
        except WeirError as error:
            _fail(str(error), 1)
        except KeyboardInterrupt:
            _fail("interrupted", 130)


@contextmanager
def of_extra(extra: str) -> Iterator[None]:
    """For imports of packages that an extra brings; raises RequestError with the way to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise RequestError(f"{error.name} is not installed: pip install 'weir-ps[{extra}]'") from error


def _fail(message: str, status: int) -> None:
    print(f"weir: {message}", file=sys.stderr)
    raise typer.Exit(status)


def _print(result: dict[str, Any], shown: Callable[[dict[str, Any]], str], json_to: TextIO | None) -> None:
    if json_to is not None:
        print(json.dumps(result), file=json_to, flush=True)
    else:
        print(shown(result), file=sys.stderr, end="")
