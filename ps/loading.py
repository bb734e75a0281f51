"""All rows of a shard replaced by those of records: the work of a restore on the shard's thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ps.holding import Holding
from ps.record import Record


@dataclass(frozen=True)
class Incoming:
    """What is to replace all rows. records: those of owned buckets. expired: by table, clients to refuse. num_rows: of
    each table, about. is_checked: whether all records were read before, so that none can be damaged.
    """

    records: Iterable[Record]
    expired: Mapping[str, Sequence[int]] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)
    is_checked: bool = True


def replace_rows(holding: Holding, incoming: Incoming, clock: Callable[[], float]) -> Generator[None, None, int]:
    """Drop every row, then load what comes; how many rows.

    Where there were no rows, an error of the records leaves all as it was. Where there were some they are gone then:
    so records must have been checked.
    """
    had_rows = holding.num_rows > 0
    kept = [] if had_rows else [record for bucket in holding.held.tolist() for record in holding.records_of(bucket)]
    refused = holding.expired_ids()
    try:
        holding.clear()
        for table, count in incoming.num_rows.items():
            holding.tables[table].expect(count)
        num_rows, num_buckets = 0, max(1, len(holding.held))
        for record in incoming.records:
            expected = incoming.num_rows.get(record.table, 0) // num_buckets
            num_rows += _load(holding, record, clock(), expected)
            yield
        _refuse(holding, incoming.expired)
        return num_rows
    except Exception:
        if not had_rows:
            holding.clear()
            for record in kept:
                _load(holding, record, clock())
            _refuse(holding, refused)
        raise


def _load(holding: Holding, record: Record, now: float, expected: int = 0) -> int:
    num_rows = holding.load(record, now=now, expected=expected)
    if holding.changes is not None:
        holding.changes.forget()  # a journal gets all rows at the end, or has what there was before
    return num_rows


def _refuse(holding: Holding, expired: Mapping[str, Sequence[int]]) -> None:
    for table, ids in expired.items():
        holding.applied[table].load_expired(list(ids))
