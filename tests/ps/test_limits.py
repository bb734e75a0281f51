"""Limits of one message: each error names what was found, the limit and the option; nothing is made before."""

import numpy as np
import pytest
from pydantic import ValidationError

import ps
from ps.errors import RequestError
from ps.request import check_request
from ps.security import Limits, SecurityOptions
from ps.server import ShardServer
from ps.transport import GrpcTransport
from ps.wire import weir_pb2 as pb
from tests.ps.driving import NUM_BUCKETS, SPEC, call, keys_in, message, push

KEYS = keys_in(range(NUM_BUCKETS))  # 32
SMALL = SecurityOptions(limits=Limits(max_message_bytes="64KiB", max_keys_per_request=40))


def check(*calls, keys=1 << 24, num_bytes=1 << 30):
    limits = Limits.model_construct(max_keys_per_request=keys, max_message_bytes=num_bytes)
    return check_request(message(*calls, sequence=1), SPEC, limits=limits)


def test_keys_are_counted_over_all_calls():
    pull = call("pull", keys=KEYS)
    assert check(pull, keys=32).calls
    assert check(pull, pull, keys=64).calls
    with pytest.raises(
        RequestError, match=r"has 64 keys; the limit is 63: .* raise cluster\.security\.limits\.max_keys_per_request"
    ):
        check(pull, pull, keys=63)


def test_keys_in_shared_memory_count_before_it_is_opened():
    shared = pb.Call(table="user", psfunc="pull", shared_keys=pb.Range(start=0, length=1 << 40))
    with pytest.raises(RequestError, match=f"has {1 << 37} keys; the limit is"):
        check(shared)


@pytest.mark.parametrize(("dtype", "item_bytes"), [(pb.FLOAT32, 4), (pb.FLOAT16, 2)])
def test_rows_of_the_reply_are_counted_before_they_are_made(dtype, item_bytes):
    pull, one = call("pull", keys=KEYS, dtype=dtype), 32 * 3 * item_bytes
    assert check(pull, pull, num_bytes=2 * one).calls
    with pytest.raises(
        RequestError,
        match=rf"would take {2 * one} bytes; the limit is {2 * one - 1}: send fewer keys at a time, or raise "
        r"cluster\.security\.limits\.max_message_bytes",
    ):
        check(pull, pull, num_bytes=2 * one - 1)


def test_only_rows_of_the_reply_count():
    assert check(push(KEYS), call("size"), num_bytes=1).calls


def test_arguments_stay_small():
    with pytest.raises(
        RequestError, match=r"call 0 \('scale' on table 'user'\): arguments of 1048577 bytes; the limit"
    ):
        check(call("scale", args=bytes((1 << 20) + 1)))


def test_a_recipe_may_write_sizes_as_people_do():
    assert Limits.model_validate({"max_message_bytes": "256MiB"}).max_message_bytes == 256 << 20
    for wrong in ({"max_message_bytes": "4GiB"}, {"max_message_bytes": 10}, {"max_keys_per_request": 0}):
        with pytest.raises(ValidationError):
            Limits.model_validate(wrong)


@pytest.fixture(scope="module")
def cluster():
    with ps.LocalCluster(SPEC, shards=1, placement="process", security=SMALL) as running:
        yield running


def test_too_large_messages_get_one_clear_error(cluster):
    """Once from the client's own channel, and once from the shard, for a client that was told of no limit."""
    large = message(call("pull", keys=KEYS, args=bytes(100_000)))
    for security in (SMALL, None):
        transport = GrpcTransport(security)
        try:
            with pytest.raises(
                RequestError,
                match=r"larger than max .*65536.*cluster\.security\.limits\.max_message_bytes at both ends",
            ):
                transport.send(cluster.addresses[0], "Execute", large, 20).result()
        finally:
            transport.close()


def test_a_client_hears_of_limits_at_once_and_goes_on(cluster):
    with cluster.connect() as client:
        many = keys_in(range(NUM_BUCKETS), each=3)
        for attempt in (
            lambda: client.pull("user", many),
            lambda: client.push("user", many, np.ones((len(many), 3), np.float32), step=1).wait(),
        ):
            with pytest.raises(RequestError, match=r"the message has 48 keys; the limit is 40"):
                attempt()
        assert client.stats()["retries"] == 0
        assert client.pull("user", KEYS).shape == (32, 3)


def test_a_server_takes_messages_up_to_its_limit():
    server, transport = ShardServer(security=SMALL), GrpcTransport(SMALL)
    try:
        fits = pb.RestoreRequest(directory="x" * (65536 - 4))
        assert fits.ByteSize() == 65536
        for request, said in ((fits, "it must be assigned first"), (pb.RestoreRequest(directory="x" * 65533), "65537")):
            error = transport.send(server.address, "Restore", request, 20).exception()
            assert said in str(error), error
    finally:
        transport.close()
        server.stop()
