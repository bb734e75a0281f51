"""Batches on their way to the trainer: keys deduplicated in the background, the next pull under way where staleness
allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.samples.batch import Batch
from workers.samples.prefetch import prefetched

if TYPE_CHECKING:
    from ps.client import Client
    from ps.lookup import Lookup
    from ps.rounds import Future
    from ps.types import Rows


@dataclass(frozen=True)
class Feed:
    """A batch, its unique keys and the pull of their rows."""

    batch: Batch
    lookup: Lookup
    pull: Future[dict[str, Rows]]


def feeds(
    client: Client, batches: Iterable[Batch], *, prefetch_batches: int, prefetch_pull: bool, training: bool
) -> Iterator[Feed]:
    """Yield every batch in order.

    With `prefetch_pull` the next batch's pull starts before this one is handed out, so its rows lack this batch's push:
    staleness 1.
    """
    pairs = ((batch, client.prepare({table: bags.keys for table, bags in batch.bags.items()})) for batch in batches)
    with prefetched(pairs, prefetch_batches) as ready:
        waiting: Feed | None = None
        for batch, lookup in ready:
            if waiting and not prefetch_pull:
                yield waiting
                waiting = None
            feed = Feed(batch, lookup, client.start_pull(lookup, fresh=not training))
            if waiting:
                yield waiting
            waiting = feed
        if waiting:
            yield waiting
