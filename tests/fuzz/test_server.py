"""Anything at all, sent to a shard's port: each message gets an answer or a clear error, and the shard goes on.

The shard is a process of its own, so that a crash is seen as one. After every message it must answer a right one in
time, from its thread of work; after all of them, the most memory that it ever had (VmHWM, which Linux counts) may have
grown by no more than a few messages of the greatest allowed size.
"""

import dataclasses
import os
import re
import socket
import sys
from pathlib import Path

import grpc
import msgpack
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ps import control
from ps.errors import METADATA_KEY
from ps.placement import ShardProcess
from ps.psfunc import lookup, names
from ps.routing import Routing
from ps.security import Limits, SecurityOptions
from ps.shared_memory import Buffer
from ps.transport import GrpcTransport
from ps.wire import weir_pb2 as pb
from tests.fuzz.damage import ALWAYS_THE_SAME, EXAMPLES, HUGE, SECONDS, damaged, numbers, values
from tests.ps.driving import NUM_BUCKETS, TWO_TABLES, call, keys_in, message, push

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")

SECURITY = SecurityOptions(limits=Limits(max_message_bytes=4 << 20, max_keys_per_request=100_000))
MAX_GROWTH = 16 * SECURITY.limits.max_message_bytes  # allocators keep what threads have freed
KEYS = keys_in(range(NUM_BUCKETS))
SETTINGS = settings(
    max_examples=EXAMPLES,
    derandomize=ALWAYS_THE_SAME,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
CLASSES = {
    "CheckpointError", "ExpiredError", "NonFiniteError", "NotSharedError", "OverloadedError", "RequestError",
    "WrongEpochError",
}  # fmt: skip


class Shard:
    """A shard process with two tables, and raw calls to it."""

    def __init__(self):
        self.process = ShardProcess(security=SECURITY)
        transport = GrpcTransport(SECURITY)
        control.assign(transport, TWO_TABLES, Routing.initial(NUM_BUCKETS, [self.process.address]))
        transport.close()
        self.channel = grpc.insecure_channel(self.process.address)
        for table, width in (("user", 3), ("item", 2)):
            grown = message(push(KEYS, table=table, width=width), call("pull", table=table, keys=KEYS), sequence=1)
            assert self.call("Execute", grown.SerializeToString()) is None
        self.memory = self.peak_bytes()

    def call(self, method, data):
        """None for a reply, else the failure."""
        stub = self.channel.unary_unary(f"/weir.v1.Shard/{method}", lambda raw: raw, lambda raw: raw)
        return stub.future(data, timeout=SECONDS).exception()

    def peak_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    def check(self, method, data):
        """Send bytes. The answer must be a reply or a clear error, and the shard must go on."""
        failure = self.call(method, data)
        if failure is not None:
            classes = [value for key, value in failure.trailing_metadata() or () if key == METADATA_KEY]
            said = f"{failure.code()}: {failure.details()}"
            assert classes, f"a status of gRPC itself: {said}"
            assert classes[0] in CLASSES, f"{classes[0]}, {said}"
            assert "Traceback" not in said
            assert len(said) > 20
        assert self.process.process.poll() is None, "the shard died"
        assert self.call("Execute", message(call("size")).SerializeToString()) is None
        assert self.peak_bytes() - self.memory < MAX_GROWTH
        return failure


@pytest.fixture(scope="module")
def shard():
    running = Shard()
    yield running
    running.channel.close()
    running.process.stop()


def parsed(kind, data):
    try:
        return kind.FromString(data)
    except DecodeError:
        return kind()


def waits_for_ranks(data):
    """A right message of a group waits for the other ranks, as it should."""
    return parsed(pb.Request, data).group.world > 1


RIGHT = {
    "Execute": [
        message(push(KEYS, table="user"), call("pull", table="user", keys=KEYS), sequence=2),
        message(push(KEYS, table="item", width=2), call("sweep", table="item"), sequence=3, group=(1, 0, 1)),
        message(call("scale", args=msgpack.packb({"factor": 0.5})), call("nrm2"), call("size"), sequence=4),
        message(pb.Call(table="user", psfunc="pull", shared_keys={"length": 64}), call("delete", keys=KEYS)),
    ],
    "Assign": [
        pb.AssignRequest(
            cluster_spec=TWO_TABLES.model_dump_json().encode(),
            routing=Routing.initial(NUM_BUCKETS, ["127.0.0.1:1"]).to_message(),
        )
    ],
    "Save": [pb.SaveRequest(directory="relative")],
    "Restore": [pb.RestoreRequest(directory="/nowhere")],
    "Status": [pb.StatusRequest()],
    "Mark": [pb.MarkRequest(version="v1", step=1, data_time=2.0)],
    "Deltas": [pb.DeltasRequest(next_offset=5), pb.DeltasRequest(next_offset=5, partition=3)],
}


@SETTINGS
@given(st.sampled_from(list(RIGHT)), st.binary(max_size=300) | st.sampled_from(HUGE))
def test_random_bytes(shard, method, data):
    assume(not parsed(pb.SaveRequest, data).directory.startswith("/"))
    shard.check(method, data)


@SETTINGS
@given(st.data())
def test_damaged_messages(shard, data):
    method = data.draw(st.sampled_from(list(RIGHT)))
    sent = data.draw(damaged(data.draw(st.sampled_from(RIGHT[method])).SerializeToString()))
    assume(not (method == "Execute" and waits_for_ranks(sent)))
    assume(not (method == "Save" and parsed(pb.SaveRequest, sent).directory.startswith("/")))
    shard.check(method, sent)


u64 = st.integers(0, 3) | st.integers(0, (1 << 64) - 1)
i64 = st.integers(-1, 3) | st.integers(-(1 << 63), (1 << 63) - 1)
floats = st.floats(width=32)
ranges = st.builds(pb.Range, start=st.sampled_from([0, 64, 1]) | u64, length=st.sampled_from([0, 8, 256]) | u64)
some_keys = st.sampled_from([KEYS, KEYS[:1], KEYS[::-1], np.repeat(KEYS, 3), KEYS[:0]]).map(lambda k: k.tobytes())


@st.composite
def arguments(draw, psfunc):
    """Of a known psfunc: its own names with values of any kind; else anything that msgpack carries, or does not."""
    if psfunc in names() and draw(st.integers(0, 3)):
        fields = [f.name for f in dataclasses.fields(lookup(psfunc)) if f.init]
        known = st.sampled_from(["linear", "embedding", None, 0.5, 1, []])
        return msgpack.packb({name: draw(known | values) for name in fields if draw(st.integers(0, 4))})
    return draw(values.map(msgpack.packb) | st.binary(max_size=40) | st.sampled_from(HUGE))


@st.composite
def calls(draw):
    psfunc = draw(st.sampled_from(names()) | st.text(max_size=8))
    made = pb.Call(table=draw(st.sampled_from(["user", "item"]) | st.text(max_size=2000)), psfunc=psfunc)
    made.args = draw(arguments(psfunc))
    made.keys = draw(some_keys | st.binary(max_size=64) | st.just(b""))
    width = 3 if made.table == "user" else 2
    made.payload = draw(st.sampled_from([b"", bytes(len(made.keys) // 8 * width * 4)]) | st.binary(max_size=64))
    made.dtype = draw(st.sampled_from([0, 0, 1, 2, 3, -1, (1 << 31) - 1]))
    made.learning_rates.extend(draw(st.just([]) | st.lists(floats, max_size=3)))
    made.drop_above, made.drop_below = draw(st.just((0.0, 0.0)) | st.tuples(floats, floats))
    made.counts = draw(st.just(b"") | st.binary(max_size=64))
    for name in draw(st.lists(st.sampled_from(["shared_keys", "shared_payload", "shared_reply", "shared_counts"]))):
        getattr(made, name).CopyFrom(draw(ranges))
    return made


@pytest.fixture(scope="module")
def buffer():
    """Memory of this process that the shard can reach."""
    made = Buffer(1 << 16)
    rng = np.random.default_rng(0)
    made.bytes[:] = rng.integers(0, 256, len(made.bytes), dtype=np.uint8)
    made.bytes[: KEYS.nbytes] = KEYS.view(np.uint8)
    return made


@st.composite
def requests(draw, buffer):
    made = message(*draw(st.lists(calls(), max_size=3)))
    made.wire_version = draw(st.sampled_from([1] * 8 + [0, 2, (1 << 32) - 1]))
    made.routing_epoch = draw(st.sampled_from([1] * 8 + [0, (1 << 64) - 1]))
    made.client, made.sequence = draw(u64), draw(u64)
    made.step, made.event_time = draw(i64), draw(i64)
    if draw(st.booleans()):
        name = buffer.name
        made.shared.pid = draw(st.sampled_from([name.pid] * 4 + [0, 1, (1 << 32) - 1]))
        made.shared.descriptor = draw(st.sampled_from([name.descriptor] * 4 + [0, (1 << 32) - 1]))
        made.shared.id = draw(st.sampled_from([name.id] * 4 + [0]))
        made.shared.size = draw(st.sampled_from([name.size] * 4 + [0, 1, 1 << 62]))
    if not draw(st.integers(0, 3)):
        made.group.generation, made.group.rank = draw(st.integers(0, 3)), draw(st.sampled_from([0, 0, 1, 1 << 31]))
        made.group.world = draw(st.sampled_from([1, 1, 0]))
    return made


@SETTINGS
@given(st.data())
def test_messages_of_wrong_parts(shard, buffer, data):
    shard.check("Execute", data.draw(requests(buffer)).SerializeToString())


specs = st.recursive(
    values, lambda inner: st.fixed_dictionaries({"tables": inner, "num_buckets": numbers}), max_leaves=3
)


@SETTINGS
@given(st.data())
def test_control_messages_of_wrong_parts(shard, data):
    """Such as a folder with a zero byte in its name, owners that name no shard, a spec that is none."""
    text = st.text(max_size=50) | st.sampled_from(
        ["\0", "/\0", "/proc/self/mem", "/dev/null", "/" + "x" * 5000, "a" * 70000]
    )
    match data.draw(st.sampled_from(["Save", "Restore", "Assign"])):
        case "Save":
            folder = data.draw(text)
            assume(
                "\0" in folder
                or not folder.startswith("/")
                or folder.startswith(("/proc", "/dev"))
                or len(folder) > 4096
            )
            shard.check("Save", pb.SaveRequest(directory=folder).SerializeToString())
        case "Restore":
            shard.check("Restore", pb.RestoreRequest(directory=data.draw(text)).SerializeToString())
        case "Assign":
            spec = data.draw(
                st.just(TWO_TABLES.model_dump_json().encode())
                | st.binary(max_size=50)
                | specs.map(repr).map(str.encode)
            )
            made = pb.AssignRequest(cluster_spec=spec, shard=data.draw(st.sampled_from([0, 1, (1 << 32) - 1])))
            owners = st.sampled_from(
                [bytes(4 * NUM_BUCKETS), b"\xff" * 4 * NUM_BUCKETS, b"", b"\1\0\0\0" * NUM_BUCKETS]
            )
            made.routing.owners = data.draw(owners | st.binary(max_size=70))
            made.routing.epoch = data.draw(st.sampled_from([0, 1]))
            made.routing.addresses.extend(data.draw(st.lists(st.text(max_size=20), max_size=20)))
            shard.check("Assign", made.SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\x00" * (1 << 20),  # a million empty calls
        message(call("sum", args=b"\x80" * (3 << 20))).SerializeToString(),  # three million empty maps
        message(call("sum", args=b"\x91" * 1000)).SerializeToString(),
        message(call("sum", args=b"\x91" * 100_000)).SerializeToString(),
        message(call("scale", args=b"\x81\xa6factor" + b"\x91" * 1000 + b"\xc0")).SerializeToString(),
        message(call("sum", table="\N{GRINNING FACE}" * 900_000)).SerializeToString(),
        message(call("\N{GRINNING FACE}" * 900_000)).SerializeToString(),
        message(push(KEYS, learning_rates=[1.0] * 900_000), sequence=9).SerializeToString(),
        message(call("pull", keys=np.zeros(400_000, np.uint64))).SerializeToString(),
        message(call("pull", keys=np.zeros(100_000, np.uint64)), call("pull")).SerializeToString() * 3,
        b"\x0b" * (4 << 20),  # groups in groups
    ],
    ids=["calls", "maps", "cut", "nested", "deep", "table", "psfunc", "rates", "keys", "repeated", "groups"],
)
def test_bombs(shard, data):
    assert len(data) <= SECURITY.limits.max_message_bytes
    assert shard.check("Execute", data) is not None


def test_one_byte_too_many_is_not_even_taken_in(shard):
    failure = shard.call("Execute", bytes(SECURITY.limits.max_message_bytes + 1))
    assert failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert shard.call("Status", b"") is None


@SETTINGS
@given(st.binary(min_size=1, max_size=200), st.booleans())
def test_bytes_that_are_not_even_grpc(shard, data, greets):
    host, port = shard.process.address.split(":")
    with socket.create_connection((host, int(port)), SECONDS) as raw:
        raw.sendall((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if greets else b"") + data)
    assert shard.process.process.poll() is None
    assert shard.call("Status", b"") is None


def test_a_server_that_belongs_to_no_cluster_yet(shard):
    """Assign is the only way in, and what is no spec changes nothing."""
    fresh = ShardProcess(security=SECURITY)
    try:
        with grpc.insecure_channel(fresh.address) as channel:
            for method in RIGHT:
                for data in (b"", b"\xff", *HUGE, os.urandom(100)):
                    stub = channel.unary_unary(f"/weir.v1.Shard/{method}", lambda raw: raw, lambda raw: raw)
                    failure = stub.future(data, timeout=SECONDS).exception()
                    if failure is not None:
                        classes = [value for key, value in failure.trailing_metadata() or () if key == METADATA_KEY]
                        assert classes, failure.details()
                        assert classes[0] in CLASSES, failure.details()
            assert fresh.process.poll() is None
    finally:
        fresh.stop()
