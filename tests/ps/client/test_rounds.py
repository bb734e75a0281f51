"""Retries of a round, against a transport that answers as it is told: what is sent again, to whom, and when it ends."""

import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

import ps
from ps.lookup import prepare
from ps.messages import Execute, Identity, Pull, Push
from ps.rounds import Connection
from ps.routing import Routing
from ps.tally import Tally
from ps.wire import weir_pb2 as pb
from tests.ps.client.conftest import SPEC, fresh_keys


class Script:
    """Answers each message by `answer(address, request)`, a reply or an error, on a thread of its own."""

    def __init__(self, answer):
        self.answer = answer
        self.sent = []

    def send(self, address, method, message, timeout_seconds):
        self.sent.append((address, message))
        future = Future()

        def reply():
            outcome = self.answer(address, message)
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        threading.Thread(target=reply).start()
        return future

    def close(self):
        pass


class Known:
    def __init__(self, *routings):
        self.routings = list(routings)

    def routing(self):
        return self.routings[-1]


def owners(*numbers):
    return np.repeat(np.array(numbers, np.int32), SPEC.num_buckets // len(numbers))


def zeros(message):
    """Rows of zeros for every call, their first column the key's low bits, so that a mix-up shows."""
    reply = pb.Reply()
    for call in message.calls:
        keys = np.frombuffer(call.keys, "<u8")
        rows = np.zeros((len(keys), SPEC.tables[call.table].width), np.float32)
        rows[:, 0] = keys & np.uint64(0xFFFF)
        result = reply.results.add(payload=rows.tobytes() if call.psfunc == "pull" else b"")
        result.num_applied = len(keys)
    return reply


def connection(answer, directory, routing, **retry):
    transport = Script(answer)
    options = ps.RetryOptions(**{"first_backoff_seconds": 0.001, "unavailable_seconds": 5.0, **retry})
    return transport, Connection("c", transport, directory, routing=routing, retry=options, tally=Tally())


def pull(line, lookup):
    out = {
        table: np.full((len(keys), SPEC.tables[table].width), np.nan, np.float32) for table, keys in lookup.keys.items()
    }
    return line.start(Pull(lookup, out, {}, pb.FLOAT32), lambda: out)


def keys_sent(messages):
    return sorted(
        int(key) for _, message in messages for call in message.calls for key in np.frombuffer(call.keys, "<u8")
    )


@pytest.mark.parametrize("repetition", range(5))
def test_a_stale_epoch_is_split_again_and_only_what_was_not_answered(repetition):
    old, new = Routing(1, owners(0, 0, 1, 1), ("a", "b")), Routing(2, owners(0, 2, 1, 2), ("a", "b", "c"))

    def answer(address, message):
        if address == "a" and message.routing_epoch == 1:
            return zeros(message)  # this one was in time
        if message.routing_epoch == 1:
            return ps.WrongEpochError("moved")
        return zeros(message)

    transport, line = connection(answer, Known(new), old)
    lookup = prepare(SPEC, {"user": fresh_keys(300), "item": fresh_keys(200)})
    out = pull(line, lookup).wait(10)
    for table, rows in out.items():
        np.testing.assert_array_equal(rows[:, 0], (lookup.keys[table] & np.uint64(0xFFFF)).astype(np.float32))
    first = [(a, m) for a, m in transport.sent if m.routing_epoch == 1]
    second = [(a, m) for a, m in transport.sent if m.routing_epoch == 2]
    assert [address for address, _ in first] == ["a", "b"]
    assert sorted(address for address, _ in second) == ["b", "c"]
    assert keys_sent(second) == keys_sent([first[1]])
    line.close()


def test_every_part_may_be_refused_at_once():
    """A past bug: the round looked finished between the end of one part and the sending of its successors."""
    old, new = Routing(1, owners(0, 1), ("a", "b")), Routing(2, owners(1, 0), ("a", "b"))
    lookup = prepare(SPEC, {"user": fresh_keys(500)})
    for _ in range(30):
        _, line = connection(
            lambda _, m: zeros(m) if m.routing_epoch == 2 else ps.WrongEpochError("moved"), Known(new), old
        )
        rows = pull(line, lookup).wait(10)["user"]
        assert np.isfinite(rows).all()
        line.close()


def push_work(lookup, sweeps=()):
    gradients = {"user": np.ones((len(lookup.keys["user"]), 4), np.float32)}
    return Push(lookup, gradients, {}, {}, {"user": [0.1, 0.1]}, sweeps, Identity(5, 9, 3), pb.FLOAT32)


def test_a_push_sent_again_keeps_client_and_sequence():
    refused = []

    def answer(address, message):
        refused.append(address)
        return ps.OverloadedError("full") if refused.count(address) <= 3 else zeros(message)

    routing = Routing(1, owners(0, 1), ("a", "b"))
    transport, line = connection(answer, Known(routing), routing)
    work = push_work(prepare(SPEC, {"user": fresh_keys(100)}))
    line.start(work, lambda: None).wait(10)
    assert work.counts["user"].applied == 100
    assert len(transport.sent) == 8
    assert {(m.client, m.sequence, m.step) for _, m in transport.sent} == {(5, 9, 3)}
    assert line.tally.read()["retries"] == 6
    line.close()


def test_a_push_with_a_sweep_goes_to_all_shards_again_when_routing_moved():
    old, new = Routing(1, owners(0, 1), ("a", "b")), Routing(2, owners(0, 1), ("a", "c"))

    def answer(address, message):
        return ps.WrongEpochError("moved") if message.routing_epoch == 1 else zeros(message)

    transport, line = connection(answer, Known(new), old)
    work = push_work(prepare(SPEC, {"user": fresh_keys(40)}), sweeps=["user"])
    line.start(work, lambda: None).wait(10)
    again = [(a, m) for a, m in transport.sent if m.routing_epoch == 2]
    assert sorted(address for address, _ in again) == ["a", "c"]
    assert all([call.psfunc for call in m.calls][-1] == "sweep" for _, m in again)
    assert work.counts["user"].applied == 40
    line.close()


@pytest.mark.parametrize(
    ("error", "limit", "expected"),
    [
        (ps.OverloadedError("full"), {"overloaded_seconds": 0.2}, ("stayed overloaded", ps.OverloadedError)),
        (ps.UnavailableError("gone"), {"unavailable_seconds": 0.2}, ("cannot be reached", ps.UnavailableError)),
        (ps.WrongEpochError("moved"), {"unavailable_seconds": 0.2}, ("refused the routing", ps.WrongEpochError)),
    ],
)
def test_patience_ends(error, limit, expected):
    routing = Routing(1, owners(0), ("a",))
    transport, line = connection(lambda *_: error, Known(routing), routing, **limit)
    started = time.monotonic()
    with pytest.raises(expected[1], match=rf"pull from table 'user': shard 0 of cluster 'c' at a .*{expected[0]}"):
        pull(line, prepare(SPEC, {"user": fresh_keys(5)})).wait(10)
    assert 0.2 <= time.monotonic() - started < 3
    assert len(transport.sent) > 3
    line.close()


def test_other_errors_are_final_and_say_where():
    routing = Routing(1, owners(0, 1), ("a", "b"))
    transport, line = connection(
        lambda address, m: ps.MemoryLimitError("the table is full") if address == "b" else zeros(m),
        Known(routing),
        routing,
    )
    with pytest.raises(ps.MemoryLimitError, match="shard 1 of cluster 'c' at b: the table is full"):
        pull(line, prepare(SPEC, {"user": fresh_keys(50)})).wait(10)
    assert len(transport.sent) == 2
    line.close()


def test_a_reply_of_the_wrong_size_is_an_error():
    routing = Routing(1, owners(0), ("a",))
    short = pb.Reply(results=[pb.Result(payload=bytes(16))])
    _, line = connection(lambda *_: short, Known(routing), routing)
    with pytest.raises(ps.WeirError, match="sent 1 rows for 5 keys"):
        pull(line, prepare(SPEC, {"user": fresh_keys(5)})).wait(10)
    with pytest.raises(ps.WeirError, match="sent 1 results for 2 calls"):
        pull(line, prepare(SPEC, {"user": fresh_keys(5), "item": fresh_keys(5)})).wait(10)
    line.close()


def test_a_get_starts_anew_when_routing_moved_and_counts_nothing_twice():
    old, new = Routing(1, owners(0, 1), ("a", "b")), Routing(2, owners(0, 1), ("a", "c"))

    def answer(address, message):
        if address == "b":
            time.sleep(0.05)  # after the other one has answered
            return ps.WrongEpochError("moved")
        return pb.Reply(results=[pb.Result(values=b"\x05")])

    _, line = connection(answer, Known(new), old)
    work = Execute("user", ps.Size(), Identity())
    assert line.start(work, work.merge).wait(10) == 10
    line.close()
