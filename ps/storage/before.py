"""What rows were before a call, where a user's row function may raise in it, so that they can be put back.

In a push, rows are changed in place and their images of before go to scratch: one pass over the rows instead of two.
The scratch is kept between pushes, because new memory costs page faults; it takes as much as the rows of the largest
push.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ps.storage.kernels.images import read_images, write_images
from ps.storage.layout import RowLayout

if TYPE_CHECKING:
    from ps.storage.table import Table


class Before:
    """Of one table."""

    def __init__(self, layout: RowLayout) -> None:
        self._may_raise = layout.kernels.may_raise
        self._early_words = layout.early_words
        self._images = np.empty((0, layout.image_words), np.uint32)
        self._keys = np.empty(0, np.uint64)

    def room(self, num_rows: int) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
        """Images and keys of rows, for the kernel to fill; empty where no row function can raise."""
        if self._may_raise and len(self._keys) < num_rows:
            room = num_rows + num_rows // 4
            self._images = np.empty((room, self._images.shape[1]), np.uint32)
            self._keys = np.empty(room, np.uint64)
        return self._images, self._keys

    def put_back(self, table: Table, num_rows: int) -> None:
        """Undo what the kernel did to the first `num_rows` remembered ones, as far as they exist. Rows may have moved
        since: new ones may have taken them to other memory.
        """
        addresses = table._locate(self._keys[:num_rows])[0]
        exist = addresses >= 0
        write_images(table.arena.words, addresses[exist], self._images[:num_rows][exist], self._early_words)


@contextmanager
def restored(words: NDArray[np.uint32], layout: RowLayout, addresses: NDArray[np.int64]) -> Iterator[None]:
    """When the body raises, these rows are as they were."""
    before = np.empty((len(addresses), layout.image_words), np.uint32)
    read_images(words, addresses, before, layout.early_words)
    try:
        yield
    except Exception:
        write_images(words, addresses, before, layout.early_words)
        raise
