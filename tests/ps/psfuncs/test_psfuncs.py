"""Every psfunc against numpy, over all rows and over given keys, on one shard and on three; and users' own."""

import math
from concurrent.futures import Future

import msgpack
import numpy as np
import pytest

import ps
from ps.errors import RequestError
from ps.messages import counts_of
from ps.psfunc import Answer, decode_args, encode_args, lookup, register
from ps.psfuncs.updates import FUNCTIONS
from ps.spec import ClusterSpec
from ps.user_modules import load_modules
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import decode_floats
from tests.ps.driving import NUM_BUCKETS, SGD, Driver, call, keys_in, push
from tests.ps.psfuncs import user_psfuncs as user

SPEC = ClusterSpec.model_validate(
    {"tables": {"user": SGD}, "num_buckets": NUM_BUCKETS, "psfunc_modules": ["tests.ps.psfuncs.user_psfuncs"]}
)
KEYS = keys_in(range(NUM_BUCKETS), each=9)
HALF = np.concatenate([KEYS[::2]])
MISSING = keys_in(range(NUM_BUCKETS), each=12)


class Cluster:
    """Shards with the same rows, and the client's side of a psfunc."""

    def __init__(self, shards, values=None):
        self.drivers = [Driver(SPEC, shards=shards, shard=number) for number in range(shards)]
        self.sequence = 0
        if values is not None:
            self.update(ps.Fill(0.0), KEYS)
            self.do("push", -values, KEYS)

    def parts(self, keys):
        if keys is None:
            return [None] * len(self.drivers)
        starts = np.searchsorted(bucket_numbers(keys), np.arange(NUM_BUCKETS + 1))
        return self.drivers[0].shard.holding.routing.split(starts)

    def do(self, name, payload=None, keys=None, args=b""):
        self.sequence += 1
        results = []
        for driver, part in zip(self.drivers, self.parts(keys)):
            made = call(
                name,
                args=args,
                keys=None if keys is None else keys[part],
                payload=None if payload is None else payload[part],
            )
            if keys is None or len(keys[part]):
                results.append((driver.do(made, sequence=self.sequence).results[0], part))
        return results

    def run(self, psfunc, keys=None, payload=None):
        answers = []
        for result, part in self.do(psfunc.name, payload, keys, encode_args(psfunc)):
            rows = None
            if result.payload:
                rows = decode_floats(result.payload, pb.FLOAT32, len(result.payload) // (4 * len(keys[part])))
            values = msgpack.unpackb(result.values) if result.values else None
            answers.append(Answer(values, rows, counts_of(result), part))
        return psfunc.merge(answers)

    update = run

    def rows(self, keys=KEYS):
        return self.run(lookup("pull")(), keys)


def bucket_numbers(keys):
    from ps.keys import bucket_of

    return bucket_of(keys, NUM_BUCKETS)


@pytest.fixture(params=[1, 3])
def shards(request):
    return request.param


def values_of(seed=0, low=-2.0, high=2.0):
    values = np.random.default_rng(seed).uniform(low, high, (len(KEYS), 3)).astype(np.float32)
    values[::7, 1] = 0
    return values


SEGMENTS = {None: slice(0, 3), "linear": slice(0, 1), "embedding": slice(1, 3)}


@pytest.mark.parametrize("segment", SEGMENTS)
def test_aggregates(shards, segment):
    values = values_of()
    cluster = Cluster(shards, values)
    part = values[:, SEGMENTS[segment]].astype(np.float64)
    assert cluster.run(ps.Sum(segment=segment)) == pytest.approx(part.sum(), abs=1e-9)
    assert cluster.run(ps.Min(segment=segment)) == part.min()
    assert cluster.run(ps.Max(segment=segment)) == part.max()
    assert cluster.run(ps.Nrm2(segment=segment)) == pytest.approx(np.linalg.norm(part), rel=1e-12)
    assert cluster.run(ps.Nnz(segment=segment)) == np.count_nonzero(part)
    assert cluster.run(ps.Size()) == len(KEYS)


def test_aggregates_of_keys_count_missing_rows_with_their_initial_values(shards):
    cluster = Cluster(shards, values_of())
    rows = cluster.rows(MISSING).astype(np.float64)
    assert cluster.run(ps.Sum(), MISSING) == pytest.approx(rows.sum(), abs=1e-9)
    assert cluster.run(ps.Max(segment="linear"), MISSING) == rows[:, 0].max()
    assert cluster.run(ps.Size(), MISSING) == len(KEYS)
    assert cluster.run(ps.Size()) == len(KEYS)  # nothing was created


def test_aggregates_of_no_rows(shards):
    cluster = Cluster(shards)
    found = [cluster.run(psfunc) for psfunc in (ps.Sum(), ps.Min(), ps.Max(), ps.Nrm2(), ps.Nnz(), ps.Size())]
    assert found == [0.0, math.inf, -math.inf, 0.0, 0, 0]


def test_one_shard_or_three_give_the_same_bits():
    clusters = [Cluster(number, values_of(3)) for number in (1, 3)]
    for psfunc in (ps.Sum(), ps.Nrm2(), ps.Sum(segment="embedding"), user.Histogram()):
        one, three = (cluster.run(psfunc) for cluster in clusters)
        assert one == three
    for psfunc in (ps.Map("exp"), ps.Scale(0.3), ps.Map("axpb", 0.7, -0.1)):
        for cluster in clusters:
            cluster.update(psfunc)
        np.testing.assert_array_equal(clusters[0].rows(), clusters[1].rows())


ORACLES = {
    "abs": np.abs,
    "add": lambda x: x + np.float32(0.5),
    "axpb": lambda x: np.float32(0.5) * x + np.float32(0.75),
    "clip": lambda x: np.minimum(np.maximum(x, np.float32(0.5)), np.float32(0.75)),
    "div": lambda x: x / np.float32(0.5),
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "max": lambda x: np.maximum(x, np.float32(0.5)),
    "min": lambda x: np.minimum(x, np.float32(0.5)),
    "mul": lambda x: x * np.float32(0.5),
    "neg": lambda x: -x,
    "pow": lambda x: x ** np.float32(0.5),
    "sign": np.sign,
    "sqrt": np.sqrt,
    "square": lambda x: x * x,
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_map(function):
    values = values_of(low=0.25)
    cluster = Cluster(2, values)
    before = cluster.rows()
    arguments = [0.5, 0.75][: FUNCTIONS[function][0]]
    counts = cluster.update(ps.Map(function, *arguments))
    with np.errstate(all="ignore"):
        expected = ORACLES[function](before)
    kept = ~np.isfinite(expected).all(axis=1)
    expected[kept] = before[kept]
    assert (counts.applied, counts.nonfinite) == (len(KEYS) - kept.sum(), kept.sum())
    assert kept.any() == (function == "log")  # of the zeros
    np.testing.assert_array_equal(cluster.rows(), expected)


def test_fill_and_scale_over_rows_and_keys(shards):
    cluster = Cluster(shards, values_of())
    before = cluster.rows()
    assert cluster.update(ps.Scale(-0.5)).applied == len(KEYS)
    np.testing.assert_array_equal(cluster.rows(), before * np.float32(-0.5))
    counts = cluster.update(ps.Fill(3.0, segment="linear"), HALF)
    assert (counts.applied, counts.created) == (len(HALF), 0)
    expected = before * np.float32(-0.5)
    expected[::2, 0] = 3
    np.testing.assert_array_equal(cluster.rows(), expected)


def test_updates_of_keys_create_rows_from_their_initial_values(shards):
    cluster = Cluster(shards)
    before = cluster.rows()
    counts = cluster.update(ps.Scale(2.0, segment="embedding"), KEYS)
    assert (counts.applied, counts.created) == (len(KEYS), len(KEYS))
    before[:, 1:] *= 2
    np.testing.assert_array_equal(cluster.rows(), before)
    assert cluster.update(ps.Fill(1.0), MISSING).created == len(MISSING) - len(KEYS)
    assert cluster.run(ps.Sum()) == 3 * len(MISSING)


def test_delete(shards):
    cluster = Cluster(shards, values_of())
    assert cluster.do("delete", None, HALF)[0][0].num_applied > 0
    assert cluster.run(ps.Size()) == len(KEYS) - len(HALF)
    assert cluster.run(ps.Size(), HALF) == 0


def test_sweep_equals_a_push_of_zeros_in_table_order():
    """Of a table without swept segments there is nothing to do, and the count says which rows were seen."""
    driver = Driver()
    driver.do(push(KEYS), sequence=1)
    assert driver.do(call("sweep"), sequence=2).results[0].num_applied == len(KEYS)


def test_a_users_update_and_aggregate(shards):
    values = values_of()
    cluster = Cluster(shards, values)
    before = cluster.rows()
    assert cluster.run(user.Histogram([-2.0, -1.0, 0.5, 2.0])) == np.histogram(before, [-2, -1, 0.5, 2])[0].tolist()
    assert cluster.update(user.ClipRows(0.5, segment="embedding")).applied == len(KEYS)
    norms = np.linalg.norm(cluster.rows()[:, 1:], axis=1)
    assert norms.max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(cluster.rows()[:, 0], before[:, 0])


def test_a_users_psfunc_with_payload_and_rows(shards):
    cluster = Cluster(shards, values_of())
    weights = values_of(5)
    found = cluster.run(user.Scores(), KEYS, weights)
    np.testing.assert_array_equal(found, np.sum(cluster.rows() * weights, axis=1))


@pytest.mark.parametrize("keys", [None, KEYS])
def test_an_error_leaves_the_table_as_it_was_and_names_file_and_line(shards, keys):
    cluster = Cluster(shards, values_of())
    before = cluster.rows()
    # The last key of the last shard: everything before it has been computed by then.
    victim = int(keys_in([NUM_BUCKETS - 1], each=9)[-1])
    with pytest.raises(RequestError, match=r"user_psfuncs\.py:\d+ in compute: ZeroDivisionError") as caught:
        cluster.update(user.FailsOn(victim), keys)
    line = int(str(caught.value).split("user_psfuncs.py:")[1].split(" ")[0])
    with open(user.__file__) as file:
        assert "1 // 0" in file.readlines()[line - 1]
    last = cluster.drivers[-1]
    own = bucket_numbers(KEYS) >= last.shard.holding.owned[0]
    np.testing.assert_array_equal(last.pull(KEYS[own]), before[own])


def test_a_failed_update_can_be_sent_again():
    driver = Driver(SPEC)
    driver.do(push(KEYS), sequence=1)
    bad = call("fails_on", args=encode_args(user.FailsOn(int(KEYS[0]))))
    for _ in range(2):
        with pytest.raises(RequestError, match="failed at"):
            driver.do(bad, sequence=2)
    good = call("fails_on", args=encode_args(user.FailsOn(1)))
    assert driver.do(good, sequence=2).results[0].num_applied == len(KEYS)
    assert driver.do(good, sequence=2).results[0].num_applied == 0


def test_a_failing_call_leaves_the_calls_before_it_applied_once():
    driver = Driver(SPEC)
    bad = call("fails_on", args=encode_args(user.FailsOn(int(KEYS[0]))))
    before = driver.pull(KEYS)
    with pytest.raises(RequestError):
        driver.do(push(KEYS, 1.0), bad, sequence=1)
    np.testing.assert_array_equal(driver.pull(KEYS), before - 1)
    assert driver.do(push(KEYS, 1.0), sequence=1).results[0].num_skipped == len(KEYS)


@pytest.mark.parametrize(
    ("psfunc", "message"),
    [
        (user.WrongShape(), r"returned float32 \(9, 1\); it must return float32 \(9, 3\)"),
        (user.WrongAnswer(), "returned int; `apply` must return an Answer"),
        (user.OddAnswer(), "values that msgpack cannot carry"),
    ],
)
def test_wrong_results_of_users_are_told(psfunc, message):
    driver = Driver(SPEC)
    driver.do(push(KEYS), sequence=1)
    with pytest.raises(RequestError, match=message):
        driver.do(call(psfunc.name, args=encode_args(psfunc)), sequence=2)


def test_wrong_arguments():
    with pytest.raises(RequestError, match="no function 'sqr'; known: abs, add"):
        ps.Map("sqr")
    with pytest.raises(RequestError, match="'clip' takes 2 numbers after its name; 1 given"):
        ps.Map("clip", 1.0)
    with pytest.raises(RequestError, match="factor is nan; it must be a finite number"):
        ps.Scale(math.nan)
    with pytest.raises(RequestError, match=r"arguments do not fit .* it takes: segment, value"):
        decode_args("fill", msgpack.packb({"valeu": 3}))
    with pytest.raises(RequestError, match="arguments cannot be read"):
        decode_args("fill", b"\xc1")
    with pytest.raises(RequestError, match=r"no psfunc 'summ' here; known: .*sum"):
        decode_args("summ", b"")
    with pytest.raises(RequestError, match="must be numbers, texts, bytes, lists or maps"):
        encode_args(user.Histogram(edges=[object()]))
    assert decode_args("histogram", encode_args(user.Histogram(np.array([0.0, 1.0])))) == user.Histogram([0.0, 1.0])


def test_registration_mistakes():
    with pytest.raises(RequestError, match=r"is registered by ps\.psfuncs\.aggregates"):

        @register("sum")
        class Sum(ps.Psfunc):
            kind = "get"

    with pytest.raises(RequestError, match="dataclass"):

        @register("not_a_dataclass")
        class NotADataclass(ps.RowUpdate):
            pass

    with pytest.raises(RequestError, match="module 'no_such_module' cannot be imported: ModuleNotFoundError"):
        load_modules(["no_such_module"])


def test_the_example_in_the_docs_is_the_tested_one():
    from pathlib import Path

    source = Path(user.__file__).read_text()
    example = source[source.index("# docs: begin") + len("# docs: begin") : source.index("# docs: end")].strip()
    page = (Path(__file__).parents[3] / "docs" / "psfuncs.md").read_text()
    assert example in page


def test_a_module_that_cannot_be_imported_fails_the_assign():
    driver = Driver()
    from ps.shard import Shard

    shard, answer = Shard(), Future()
    spec = SPEC.model_copy(update={"psfunc_modules": ("no_such_module",)})
    shard.assign(spec, driver.shard.holding.routing, 0, answer)
    while shard.run_slice():
        pass
    with pytest.raises(RequestError, match="no_such_module"):
        answer.result(0)
