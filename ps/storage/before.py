"""What rows were before a call, where a user's row function may raise in it, so that they can be put back.

In a push, rows are changed in place and their images of before go to scratch: one pass over the rows instead of two.
The scratch is kept between pushes, because new memory costs page faults; it takes as much as the rows of the largest
push.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ps.storage.kernels.images import read_images, write_images
from ps.storage.layout import RowLayout


class Before:
    """Of one table."""

    def __init__(self, layout: RowLayout) -> None:
        self._may_raise = layout.kernels.may_raise
        self._early_words = layout.early_words
        self._images = np.empty((0, layout.image_words), np.uint32)
        self._addresses = np.empty(0, np.int64)

    def room(self, num_rows: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Images and addresses for the kernel to fill; empty where no row function can raise."""
        if self._may_raise and len(self._addresses) < num_rows:
            room = num_rows + num_rows // 4
            self._images = np.empty((room, self._images.shape[1]), np.uint32)
            self._addresses = np.empty(room, np.int64)
        return self._images, self._addresses

    def put_back(self, words: NDArray[np.uint32], num_rows: int) -> None:
        """Undo what the kernel did to these rows."""
        write_images(words, self._addresses[:num_rows], self._images[:num_rows], self._early_words)


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
