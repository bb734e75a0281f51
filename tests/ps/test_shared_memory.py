"""Buffers that client and shard share: what is opened, what is refused, and when memory is used again or left alone."""

import fcntl
import os
import subprocess
import sys

import numpy as np
import pytest

from ps.errors import NotSharedError, RequestError
from ps.request import check_request
from ps.shared_memory import Buffer, BufferName, Mappings, Pool, is_this_machine
from ps.wire import weir_pb2 as pb
from tests.ps.driving import SPEC, call, keys_of, message, push

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="anonymous files in memory are Linux's")
KEYS = keys_of(1, 2, 3)


@pytest.fixture
def buffer():
    made = Buffer(1 << 16)
    yield made
    made.close(clear=True)


def test_both_sides_see_the_same_bytes(buffer):
    mapped = Mappings().open(buffer.name)
    buffer.bytes[:4] = [1, 2, 3, 4]
    assert mapped[:4].tolist() == [1, 2, 3, 4]
    mapped[5] = 9
    assert buffer.bytes[5] == 9


def test_nobody_can_shrink_a_buffer_under_its_reader(buffer):
    with pytest.raises(PermissionError):
        os.ftruncate(buffer.name.descriptor, 4096)


def refused(name):
    with pytest.raises(NotSharedError):
        Mappings().open(name)


def test_only_the_named_sealed_file_is_opened(buffer, tmp_path):
    refused(buffer.name._replace(id=buffer.name.id ^ 1))
    refused(buffer.name._replace(size=1 << 15))
    refused(buffer.name._replace(pid=1))
    refused(buffer.name._replace(descriptor=9999))
    (tmp_path / "secret").write_bytes(bytes(1 << 16))
    with open(tmp_path / "secret", "r+b") as file:
        refused(BufferName(os.getpid(), file.fileno(), 7, 1 << 16))


def test_a_file_that_could_shrink_is_not_mapped():
    descriptor = os.memfd_create("weir-0000000000000007", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, 1 << 16)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        refused(BufferName(os.getpid(), descriptor, 7, 1 << 16))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1 << 62])
def test_sizes_are_bounded(buffer, size):
    with pytest.raises(RequestError, match="limit"):
        Mappings().open(buffer.name._replace(size=size))


def test_a_pool_reuses_what_shards_have_done_with():
    pool = Pool(0)
    first = pool.lease(100_000)
    assert first.name.size == 1 << 17
    pool.give_back(first, reusable=True)
    assert pool.lease(70_000) is first
    pool.give_back(first, reusable=False)
    again = pool.lease(70_000)
    assert again is not first
    pool.close()
    pool.give_back(again, reusable=True)
    assert not os.path.exists(f"/proc/self/fd/{again.name.descriptor}")


def test_a_buffer_given_up_keeps_its_contents_for_a_late_shard():
    pool, mappings = Pool(0), Mappings()
    buffer = pool.lease(10)
    mapped = mappings.open(buffer.name)
    buffer.bytes[:] = 7
    pool.give_back(buffer, reusable=False)
    assert (mapped == 7).all()
    pool.close()


def test_closing_a_pool_gives_memory_back_though_it_is_mapped():
    pool, mappings = Pool(0), Mappings()
    buffer = pool.lease(1 << 20)
    mapped = mappings.open(buffer.name)
    buffer.bytes[:] = 7
    pool.give_back(buffer, reusable=True)
    pool.close()
    assert (mapped == 0).all()


def test_buffers_of_a_client_that_has_ended_are_let_go(buffer):
    program = (
        "import sys; from ps.shared_memory import Buffer; b = Buffer(65536); b.bytes[0] = 5;"
        "print(*b.name, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        name = BufferName(*map(int, other.stdout.readline().split()))
        mappings = Mappings()
        assert mappings.open(name)[0] == 5
    mappings.open(buffer.name)
    assert list(mappings._maps) == [buffer.name]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:70", True),
        ("localhost:1", True),
        ("[::1]:5", True),
        ("192.0.2.1:5", False),
        ("no.such.host:1", False),
    ],
)
def test_addresses_of_this_machine(address, expected):
    assert is_this_machine(address) is expected


def shared_push(buffer, **changes):
    """A push whose arrays lie in the buffer, and some fields of the call changed."""
    made = message(push(KEYS, 0.5), client=3, sequence=1)
    buffer.bytes[: 8 * len(KEYS)].view(np.uint64)[:] = KEYS
    buffer.bytes[64 : 64 + 36].view(np.float32)[:] = 0.5
    made.shared.pid, made.shared.descriptor, made.shared.id, made.shared.size = buffer.name
    inside = made.calls[0]
    inside.ClearField("keys")
    inside.ClearField("payload")
    inside.shared_keys.CopyFrom(pb.Range(start=0, length=8 * len(KEYS)))
    inside.shared_payload.CopyFrom(pb.Range(start=64, length=36))
    for name, value in changes.items():
        if isinstance(value, pb.Range):
            getattr(inside, name).CopyFrom(value)
        else:
            setattr(inside, name, value)
    return made


def test_a_request_reads_as_if_its_arrays_lay_inside(buffer):
    plain = check_request(message(push(KEYS, 0.5), client=3, sequence=1), SPEC).calls[0]
    shared = check_request(shared_push(buffer), SPEC, Mappings()).calls[0]
    assert (shared.keyed.keys == plain.keyed.keys).all()
    assert (shared.payload == plain.payload).all()
    buffer.bytes[:8] = 0  # a key that was checked cannot be changed any more
    assert (shared.keyed.keys == plain.keyed.keys).all()
    assert not shared.payload.flags.writeable


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shared_keys": pb.Range(start=1 << 16, length=8)}, "does not fit"),
        ({"shared_payload": pb.Range(start=64, length=1 << 40)}, "does not fit"),
        ({"shared_payload": pb.Range(start=2**64 - 64, length=128)}, "does not fit"),
        ({"shared_payload": pb.Range(start=60, length=36)}, "multiple of 64"),
        ({"shared_payload": pb.Range(start=64, length=24)}, "2 rows of width 3 for 3 keys"),
        ({"shared_keys": pb.Range(start=0, length=23)}, "no whole number of uint64"),
        ({"keys": b"12345678"}, "both in the call and in shared memory"),
        ({"payload": b"1234"}, "both in the call and in shared memory"),
        ({"shared_reply": pb.Range(start=64, length=1 << 20)}, "does not fit"),
    ],
)
def test_ranges_are_checked(buffer, changes, match):
    with pytest.raises(RequestError, match=match):
        check_request(shared_push(buffer, **changes), SPEC, Mappings())


def test_a_range_without_a_buffer():
    lone = message(call("pull", keys=KEYS))
    lone.calls[0].shared_reply.CopyFrom(pb.Range(start=0, length=36))
    with pytest.raises(RequestError, match="shares no buffer"):
        check_request(lone, SPEC, Mappings())
