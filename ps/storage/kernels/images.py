"""Images of rows: the words behind the key, as they are."""

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.index import EARLY, PLACE, WORDS


@inlined
def _image_of(address, words, early_words):
    """Place of a row's image, and how many of its words the row has."""
    if address >= EARLY:
        return (address & PLACE) + 2, min(words, early_words)
    return address + 2, words


@typed_kernel("void", WORDS, readonly_array("int64"), array("uint32", 2), "int64")
def read_images(words, addresses, images, early_words):
    """images[i]: the words behind the key of the row at addresses[i]; of an early one the first early_words."""
    for i in range(addresses.shape[0]):
        place, length = _image_of(addresses[i], images.shape[1], early_words)
        for word in range(length):
            images[i, word] = words[place + word]


@typed_kernel("void", WORDS, readonly_array("int64"), readonly_array("uint32", 2), "int64")
def write_images(words, addresses, images, early_words):
    """The reverse of read_images."""
    for i in range(addresses.shape[0]):
        place, length = _image_of(addresses[i], images.shape[1], early_words)
        for word in range(length):
            words[place + word] = images[i, word]
