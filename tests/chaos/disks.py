"""What happens to disks: they fill up, and bytes of dead processes' journals become others."""

import resource
from contextlib import suppress

from ps.journal.frames import encode_commit
from ps.journal.segments import Acknowledged, find_segments
from ps.journal.snapshot import read_pointer


def limit_files(pid, num_bytes):
    """Let a process write no file beyond so many bytes. Returns what takes the limit away."""

    def limit(num_bytes):
        with suppress(ProcessLookupError):  # one that has died writes nothing either
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if num_bytes is None else num_bytes, hard))

    limit(num_bytes)
    return lambda: limit(None)


def fill_disk(folder):
    """Leave no room on a small disk. Returns what gives it back."""
    path = folder / "filler"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    return path.unlink


def tear(folder, rng):
    """Change what stands behind the acknowledged byte of a dead process's newest segment: cut it anywhere, and put
    random bytes, half a frame or a lone commit behind it. What was acknowledged stays.
    """
    newest = find_segments(folder)[-1]
    place = _acknowledged(folder)
    assert place[0] == newest, "the newest segment is acknowledged from its first byte on"
    with (folder / str(newest)).open("r+b") as file:
        end = int(rng.integers(place[1], file.seek(0, 2) + 1))
        file.truncate(end)
        file.seek(end)
        whole = encode_commit(1 << 40, {})
        file.write([b"", rng.bytes(int(rng.integers(1, 5000))), whole[: len(whole) // 2], bytes(64)][rng.integers(4)])


def flip(path, rng, num_bytes=None):
    """Change one byte of a file, among its first `num_bytes`."""
    data = bytearray(path.read_bytes())
    data[rng.integers(num_bytes or len(data))] ^= int(rng.integers(1, 256))
    path.write_bytes(data)


def counting_files(folder):
    """Those that recovery reads: segments from the snapshot's on, and the snapshot."""
    pointer = read_pointer(folder)
    segments = [name for name in find_segments(folder) if pointer is None or name >= pointer.segment]
    return [folder / str(name) for name in segments] + ([folder / pointer.file] if pointer is not None else [])


def damage_acknowledged(folder, rng):
    """Flip a byte that was acknowledged, or cut the end off, in the journal of a dead process."""
    name, end = _acknowledged(folder)
    if rng.random() < 0.5:
        with (folder / str(name)).open("r+b") as file:
            file.truncate(int(rng.integers(end)))
        return "torn"
    files = counting_files(folder)
    path = files[int(rng.integers(len(files)))]
    flip(path, rng, end if path.name == str(name) else None)
    return "flipped"


def _acknowledged(folder):
    acknowledged = Acknowledged(folder)
    place = acknowledged.read()
    acknowledged.close()
    assert place is not None
    return place
