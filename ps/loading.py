"""All rows of a shard replaced by those of records: the work of a restore on the shard's thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

from ps.holding import Holding
from ps.record import Record


def replace_rows(
    holding: Holding, records: Iterable[Record], expired: Mapping[str, Sequence[int]], clock: Callable[[], float]
) -> Generator[None, None, int]:
    """Drop every row, then load the records of owned buckets; how many rows. expired: by table, clients to refuse.

    Where there were no rows, an error of the records leaves all as it was. Where there were some, they are gone then,
    so whoever gives the records has checked them all.
    """
    had_rows = holding.num_rows > 0
    kept = [] if had_rows else [record for bucket in holding.held.tolist() for record in holding.records_of(bucket)]
    refused = holding.expired_ids()
    try:
        holding.clear()
        num_rows = 0
        for record in records:
            num_rows += _load(holding, record, clock())
            yield
        _refuse(holding, expired)
        return num_rows
    except Exception:
        if not had_rows:
            holding.clear()
            for record in kept:
                _load(holding, record, clock())
            _refuse(holding, refused)
        raise


def _load(holding: Holding, record: Record, now: float) -> int:
    num_rows = holding.load(record, now=now)
    if holding.changes is not None:
        holding.changes.forget()  # a journal gets all rows at the end, or has what there was before
    return num_rows


def _refuse(holding: Holding, expired: Mapping[str, Sequence[int]]) -> None:
    for table, ids in expired.items():
        holding.applied[table].load_expired(list(ids))
