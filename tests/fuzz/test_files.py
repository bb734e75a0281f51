"""Every reader of files, on damaged ones: it gives what it can be sure of or one clear error, soon, in little memory.

What Python and numpy allocate is counted by tracemalloc. Half of the examples have their checksums put right again, so
that what stands behind them is read as well.
"""

import json
import shutil
import time
import tracemalloc

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ps.errors import WeirError
from tests.fuzz.damage import ALWAYS_THE_SAME, EXAMPLES, SECONDS, damaged, values
from tests.fuzz.readers import READERS

MAX_BYTES = 32 << 20  # the files themselves have some kilobytes
# Without shrinking: an example costs tens of milliseconds, and the bytes of a file do not become simpler.
SETTINGS = settings(
    max_examples=max(20, EXAMPLES // 3),
    deadline=None,
    derandomize=ALWAYS_THE_SAME,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@pytest.fixture(scope="module", params=READERS)
def reader(request, tmp_path_factory):
    """A kind of file, a folder with a right one, and a folder for a damaged one."""
    chosen, folder = READERS[request.param], tmp_path_factory.mktemp(request.param)
    (folder / "right").mkdir()
    chosen.make(folder / "right")
    shutil.copytree(folder / "right", folder / "first")
    chosen.read(folder / "first")  # as it was written it is read without complaint
    return chosen, folder


def check(reader, content):
    """Read the folder with other content in one of its files."""
    chosen, folder = reader
    shutil.rmtree(folder / "damaged", ignore_errors=True)
    shutil.copytree(folder / "right", folder / "damaged")
    (path, *_) = sorted((folder / "damaged").glob(chosen.file))
    path.write_bytes(content)
    tracemalloc.start()
    began, said = time.monotonic(), None
    try:
        chosen.read(folder / "damaged")
    except WeirError as error:
        said = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert said is None or 10 < len(said) < 10_000
    assert time.monotonic() - began < SECONDS
    assert peak < MAX_BYTES


def right_content(reader):
    chosen, folder = reader
    return sorted((folder / "right").glob(chosen.file))[0].read_bytes()


@SETTINGS
@given(st.data())
def test_damaged_bytes(reader, data):
    content = data.draw(damaged(right_content(reader)))
    check(reader, reader[0].seal(content) if data.draw(st.booleans()) else content)


@SETTINGS
@given(st.data())
def test_right_structure_with_wrong_values(reader, data):
    content = data.draw(with_other_values(right_content(reader)))
    check(reader, reader[0].seal(content))


@st.composite
def with_other_values(draw, content):
    """JSON, or a file of frames, with one value replaced by any other, left out, or one added."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if body is not None:
        return json.dumps(_jsonable(draw(_changed(body)))).encode()
    pieces = list(_frames(content))
    if len(pieces) < 2:
        return draw(damaged(content))
    place = draw(st.integers(1, len(pieces) - 1))
    header, rest = pieces[place]
    packed = msgpack.packb(draw(_changed(header)), default=str)
    pieces[place] = (None, len(packed).to_bytes(4, "little") + bytes(4) + packed + rest)
    return b"".join(rest if header is None else _framed(header) + rest for header, rest in pieces)


def _framed(header):
    packed = msgpack.packb(header)
    return len(packed).to_bytes(4, "little") + bytes(4) + packed


def _frames(content):
    """(header, what follows up to the next one); first (None, magic)."""
    from tests.fuzz.readers import body_bytes

    yield None, content[:8]
    at = 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "little")
        try:
            header = msgpack.unpackb(content[at + 8 : at + 8 + length])
            size = body_bytes(header)
        except Exception:  # no file of frames
            return
        end = at + 8 + length + (0 if size is None else size + 4)
        yield header, content[at + 8 + length : end]
        at = end


@st.composite
def _changed(draw, value, depth=0):
    """The same with one thing inside it changed."""
    if isinstance(value, dict) and value and (depth == 0 or draw(st.integers(0, 3))):
        key = draw(st.sampled_from(sorted(value, key=str)))
        match draw(st.sampled_from(["inside", "inside", "inside", "remove", "add"])):
            case "inside":
                return {**value, key: draw(_changed(value[key], depth + 1))}
            case "remove":
                return {name: each for name, each in value.items() if name != key}
            case _:
                return {**value, draw(st.text(max_size=5)): draw(values)}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(_changed(value[place], depth + 1)), *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and draw(st.booleans()):
        return draw(st.sampled_from([value + 1, value - 1, -value, value * 1000, 1 << 40, (1 << 64) - 1, 0]))
    if isinstance(value, bytes) and draw(st.booleans()):
        return draw(damaged(value))
    return draw(values)


def _jsonable(value):
    if isinstance(value, dict):
        return {str(key): _jsonable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_jsonable(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value
