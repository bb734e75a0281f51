"""What is asked of a cluster, and of which nodes it may be made; from the options of `weir plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from ps.byte_sizes import ByteSize
from ps.errors import RequestError
from ps.strict import Spec
from workers.config import Config
from workers.config.errors import nearest


def read_count(text: Any) -> Any:
    """1000, 1_000, 1e12 or 10^12 as a number; what is no text stays. Raises ValueError that says what is allowed."""
    if not isinstance(text, str):
        return text
    base, power, exponent = text.partition("^")
    try:
        return float(Decimal(base) ** Decimal(exponent) if power else Decimal(base))
    except (InvalidOperation, OverflowError):
        raise ValueError(f"must be a number as 1000000, 1e6 or 10^6, found {text!r}") from None


Count = Annotated[float, BeforeValidator(read_count), Field(ge=0, le=1e18, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Demand(Spec):
    """rows: of each table. requests, updates: samples that are served, and trained on, a second. keys_per_request: of
    all tables. requests_per_call, updates_per_call: samples whose keys one call of a client carries.
    """

    rows: dict[str, Annotated[Count, Field(ge=1)]]
    requests: Count
    updates: Count
    keys_per_request: Annotated[Count, Field(gt=0)]
    requests_per_call: Whole = 1
    updates_per_call: Whole


class Nodes(Spec):
    """node_network: Gbit/s, each way. load: the share of a core and of the network that may be busy. fill: of a node's
    memory that may be full. replicas: further copies of all rows; they share the requests, and each takes every update.
    """

    node_memory: Annotated[ByteSize, Field(ge=1)] = 256 << 30
    node_cores: Whole = 32
    node_network: Annotated[float, Field(gt=0)] = 10.0
    load: Share = 0.5
    fill: Share = 0.8
    replicas: Annotated[int, Field(ge=0)] = 0

    @property
    def network_bytes_per_second(self) -> float:
        return self.node_network * 1e9 / 8


def read_options(
    config: Config, *, rows: Sequence[str], params: Sequence[str], options: Mapping[str, str | None]
) -> tuple[Demand, Nodes]:
    """rows, params: "N", or "TABLE=N" for each table; one of the two. options: the others, by the names of Demand's and
    Nodes' fields. updates: as many as requests, keys_per_request: one of each keyed field, updates_per_call: the
    recipe's batch, unless given. Raises RequestError naming the option.
    """
    if bool(rows) == bool(params):
        raise RequestError("give either --rows N or --params N")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    asked = {name: given.pop(name) for name in list(given) if name in Demand.model_fields}
    asked.setdefault("updates", asked["requests"])
    asked.setdefault("keys_per_request", len(config.slots()))
    asked.setdefault("updates_per_call", config.data.batch_size)
    by_table = _by_table("--rows" if rows else "--params", rows or params, config)
    try:
        if params:
            by_table = {name: read_count(count) / config.tables[name].width for name, count in by_table.items()}
        return Demand(rows=by_table, **asked), Nodes(**given)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        said = (
            str(detail["ctx"]["error"])
            if detail["type"] == "value_error"
            else f"{_plain(detail['msg'])}, found {detail['input']!r}"
        )
        raise RequestError(f"--{str(detail['loc'][0]).replace('_', '-')}: {said}") from error
    except ValueError as error:
        raise RequestError(f"--params: {error}") from error


def _plain(message: str) -> str:
    return message.replace("Input should be", "must be")


def _by_table(option: str, given: Sequence[str], config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in given:
        table, equals, count = each.rpartition("=")
        if not equals and len(config.tables) > 1:
            raise RequestError(
                f"{option} {each}: the recipe has tables {', '.join(config.tables)}; give TABLE=N for each"
            )
        table = table if equals else next(iter(config.tables))
        if table not in config.tables:
            raise RequestError(f"{option} {each}: unknown table '{table}'" + nearest(table, config.tables))
        found[table] = count
    if missing := set(config.tables) - set(found):
        raise RequestError(f"{option}: nothing is said of table '{min(missing)}'; give {min(missing)}=N")
    return found
