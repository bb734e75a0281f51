"""What answers follows the pointer: towers on live rows, rollbacks to old rows; what does not fit is refused."""

import shutil
import time
import weakref

import numpy as np
import pytest

from ps.delta_folder import DeltaFolder
from ps.deltas.reading import partition_folder
from ps.keys import bucket_of, hash_texts, pack
from ps.serving_rows import serving_spec
from tests.ps.publishing import Publisher
from tests.workers.serving.making import TRAINED, rows_of
from tests.workers.serving.summing import USERS, make_summing
from tests.workers.serving.test_publishing import add_dense
from workers.serving import switching
from workers.serving.building import Behind, example_sample
from workers.serving.bundle import read_bundle
from workers.serving.predictor import Predictor
from workers.serving.publishing import publish
from workers.serving.switching import Switcher
from workers.serving.versions import Models, VersionError

KEYS = pack(0, hash_texts(USERS))


class Shards(Publisher):
    """Two partitions of the bundle's rows. sums: of the rows of USERS, as of now."""

    def __init__(self, folder):
        super().__init__(TRAINED, serving_spec(TRAINED, "fp32"), shards=2, folder=folder)
        keys, rows = rows_of()
        self.sums = dict(zip(keys.tolist(), rows.sum(axis=1), strict=True))

    def learn(self, value):
        """Every element of the rows of USERS becomes `value`."""
        for key in KEYS:
            shard = int(self.owners[bucket_of(np.array([key]), TRAINED.num_buckets)][0])
            image = self.encoders["main"].encode(np.full((1, 4), value, np.float32))
            self.publish(shard, [self.frame("main", np.array([key]), image)])
            self.sums[int(key)] = np.float32(4 * value)

    def expected(self, adds):
        prices = np.log1p(np.float32([0.0, 1.5, 20.0]))
        return np.float32([self.sums[int(key)] for key in KEYS]) + prices + np.float32(adds)


@pytest.fixture
def shards(tmp_path):
    made = Shards(tmp_path / "deltas")
    made.mark("none", 0)  # partitions that are there
    yield made
    made.close()


@pytest.fixture
def models(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(switching, "POLL_SECONDS", 0.02)
    offsets = {str(shard): offset for shard, offset in shards.positions().items()}
    make_summing(tmp_path / "bundle", version="whole", offsets=offsets)
    models = Models(tmp_path / "models")
    publish(models, str(tmp_path / "bundle"))
    return models


@pytest.fixture
def server(models, shards):
    switcher = Switcher(models, lambda: DeltaFolder(shards.folder), threads=1)
    predictor = Predictor(switcher.served.model, capacity=8, candidate_capacity=100, batch_candidates=10)
    switcher.start(predictor)
    yield switcher, predictor
    switcher.close()
    predictor.close()


def dense(models, shards, name, adds):
    """A version that stands on the rows as they are now."""
    shards.mark(name, 4)
    version = add_dense(models, name, "whole", adds=adds, markers=marks(shards))
    return version.name


def marks(shards):
    return {shard: offset - 1 for shard, offset in shards.positions().items()}


def answers(models, predictor):
    """The version, and its logits of the examples."""
    model = predictor.model
    sample = example_sample(read_bundle(models.path("whole")), model)
    return model.version, model.logits([sample])[0][:, 0]


def until(models, predictor, version, expected, seconds=20.0):
    deadline = time.monotonic() + seconds
    while True:
        name, found = answers(models, predictor)
        if name == version and np.allclose(found, expected, atol=1e-5):
            return
        assert time.monotonic() < deadline, (name, found, expected, predictor.trouble())
        time.sleep(0.01)


def test_rows_go_on_and_towers_take_over_beside_them(models, shards, server):
    switcher, predictor = server
    until(models, predictor, "whole", shards.expected(0.0))
    shards.learn(0.25)
    until(models, predictor, "whole", shards.expected(0.0))
    replica = switcher.served.replica
    models.publish(dense(models, shards, "tower", adds=3.0))
    until(models, predictor, "tower", shards.expected(3.0))
    assert switcher.served.replica is replica
    shards.learn(-0.5)
    until(models, predictor, "tower", shards.expected(3.0))
    assert (switcher.switches, switcher.refused, predictor.trouble()) == (1, 0, "")
    assert switcher.last.version == "tower"
    assert switcher.last.bytes_peak >= switcher.last.bytes_before > 1 << 20


def test_a_rollback_has_the_rows_of_then_until_somebody_publishes(models, shards, server):
    switcher, predictor = server
    shards.learn(0.25)
    models.publish(dense(models, shards, "old", adds=1.0))
    then = shards.expected(1.0)
    shards.learn(0.75)
    models.publish(dense(models, shards, "new", adds=2.0))
    until(models, predictor, "new", shards.expected(2.0))
    old_rows = weakref.ref(switcher.served.replica)
    models.rollback()
    until(models, predictor, "old", then)
    shards.learn(1.5)
    models.publish(dense(models, shards, "newest", adds=4.0), by_trainer=True)
    time.sleep(0.3)
    name, found = answers(models, predictor)
    assert (name, found.tolist()) == ("old", answers(models, predictor)[1].tolist())
    np.testing.assert_allclose(found, then, atol=1e-5)
    assert switcher.served.replica.positions == {p: m + 1 for p, m in models.version("old").markers.items()}
    assert old_rows() is None  # its memory is free, though nobody collected garbage
    models.rollback("whole")
    until(models, predictor, "whole", Shards.expected(FRESH, 0.0))
    models.publish("newest")
    until(models, predictor, "newest", shards.expected(4.0))


def test_a_rollback_ends_though_a_shard_went(models, shards, server):
    """Its partition, too: the version's marker in it is never met again."""
    _, predictor = server
    shards.learn(0.25)
    models.publish(dense(models, shards, "old", adds=1.0))
    shards.learn(0.75)
    models.publish(dense(models, shards, "new", adds=2.0))
    until(models, predictor, "new", shards.expected(2.0))
    models.rollback()
    wait_for(lambda: predictor.model.version == "old")
    shards.move(range(TRAINED.num_buckets), 0)
    shards.files.pop(1).close()
    shutil.rmtree(partition_folder(shards.folder, 1))
    shards.learn(1.5)
    models.publish("new")
    wait_for(lambda: shards.beat() or predictor.model.version == "new")
    until(models, predictor, "new", shards.expected(2.0))
    assert predictor.trouble() == ""


class FRESH:
    """The rows of the bundle."""

    sums = dict(zip(rows_of()[0].tolist(), rows_of()[1].sum(axis=1), strict=True))


def test_what_does_not_fit_is_refused_and_what_serves_goes_on(models, shards, server, tmp_path):
    switcher, predictor = server
    add_dense(models, "liar", "whole", adds=1.0, claims=2.0, markers=marks(shards))
    models.publish("liar")
    wait_for(lambda: "scores its recorded examples otherwise than training did" in predictor.trouble())
    dense(models, shards, "torn", adds=1.0)
    (models.path("torn") / "tower.onnx").write_bytes(b"")
    models.publish("torn")
    wait_for(lambda: "tower.onnx was changed after it was written" in predictor.trouble())
    pointer = models.directory / "CURRENT.json"
    text = pointer.read_text()
    pointer.write_text(text[:30])
    wait_for(lambda: "CURRENT.json cannot be read" in predictor.trouble())
    shards.learn(0.5)
    until(models, predictor, "whole", shards.expected(0.0))  # rows go on
    assert (switcher.switches, switcher.refused) == (0, 2)
    pointer.write_text(text)
    models.publish(dense(models, shards, "good", adds=5.0))
    until(models, predictor, "good", shards.expected(5.0))
    assert predictor.trouble() == ""


def test_a_tower_waits_for_its_rows(models, shards, server, monkeypatch):
    _, predictor = server
    monkeypatch.setattr(switching, "_STALLED_SECONDS", 0.3)
    monkeypatch.setattr(switching, "_AGAIN_SECONDS", 0.1)
    ahead = {shard: offset + 2 for shard, offset in marks(shards).items()}
    add_dense(models, "ahead", "whole", adds=1.0, markers=ahead)
    models.publish("ahead")
    wait_for(lambda: "the rows have not come to the markers of version 'ahead'" in predictor.trouble())
    assert predictor.model.version == "whole"
    beginner = Switcher(models, lambda: DeltaFolder(shards.folder), threads=1)  # has nothing else to answer with
    assert beginner.served.version.name == "ahead"
    beginner.close()
    models.rollback("ahead")
    with pytest.raises(Behind, match="the rows have not come to the markers"):  # these have to be exact
        Switcher(models, lambda: DeltaFolder(shards.folder), threads=1)
    models.publish("ahead")
    for _ in range(3):
        shards.mark("more", 1)
    until(models, predictor, "ahead", shards.expected(1.0))


def test_nothing_to_serve_is_said(tmp_path, models):
    with pytest.raises(VersionError, match="has no version that serves; `weir model publish` makes one serve"):
        Switcher(Models(tmp_path / "empty"), None, threads=1)
    add_dense(models, "tower", "whole", adds=1.0)
    models.publish("tower")
    with pytest.raises(VersionError, match="stands on a stream of changes: where is it"):
        Switcher(models, None, threads=1)


def wait_for(is_so, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
