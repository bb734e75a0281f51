"""Increments: whatever happens between saves, the chain stands for the state at the mark, key by key."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ps
from ps import chain, checkpoint
from ps.checkpoint import read_manifest
from ps.cut import Mark
from ps.errors import CheckpointError, RequestError
from ps.places import LocalPlace, joined, relative
from ps.storage import changed
from tests.ps.driving import NUM_BUCKETS, TWO_TABLES, Driver, call, keys_in, keys_of, push
from workers.inspect import inspect

KEYS = keys_of(*range(1, 3001))
WIDTHS = {"user": 3, "item": 2}


def pushed(client, table, keys, step):
    gradients = np.random.default_rng(step).normal(size=(len(keys), WIDTHS[table])).astype(np.float32)
    client.push(table, keys, gradients, step=step).wait()


def filled(shards=2):
    client = ps.local(TWO_TABLES, shards=shards).__enter__()
    for table in WIDTHS:
        pushed(client, table, KEYS, 1)
    return client


def state(directory):
    """{(table, key): image} of what a checkpoint stands for, and what was applied by bucket."""
    rows, applied = {}, {}
    for record, _ in chain.live_records(read_manifest(directory)):
        for key, image in zip(record.keys.tolist(), record.images):
            assert (record.table, key) not in rows
            rows[record.table, key] = image.tobytes()
        if record.applied:
            assert (record.table, record.bucket) not in applied
            applied[record.table, record.bucket] = record.applied
    return rows, applied


def change(client, how, table, numbers, step):
    keys = KEYS[np.array(sorted(numbers))]
    match how:
        case "push":
            pushed(client, table, keys, step)
        case "new":
            pushed(client, table, keys_of(*(10_000 + number for number in numbers)), step)
        case "delete":
            client.delete(table, keys)
        case "all":
            client.update(table, ps.Scale(0.5))
        case "clear":
            client.clear(table)


CHANGES = st.tuples(
    st.sampled_from(["push", "new", "delete", "push", "new", "delete", "all", "clear"]),
    st.sampled_from(list(WIDTHS)),
    st.sets(st.integers(0, len(KEYS) - 1), min_size=1, max_size=40),
)
SAVED = st.tuples(st.lists(CHANGES, max_size=4), st.booleans(), st.lists(CHANGES, max_size=1))


@settings(max_examples=12, deadline=None)
@given(st.lists(SAVED, min_size=2, max_size=4), st.integers(1, 3), st.integers(0, 3))
def test_a_chain_is_the_state_at_the_mark(tmp_path_factory, saves, shards, few):
    """Each save is compared with a full one of the same instant; changes run beside its writing, too."""
    folder, step, since = tmp_path_factory.mktemp("chain"), 1, None
    with pytest.MonkeyPatch.context() as patch, filled() as client, ps.local(TWO_TABLES, shards=shards) as other:
        if not few:  # more changes than are remembered
            patch.setattr(changed, "_LEAST_KEYS", 30)
        client.save(str(folder / "first"), tracks=True)
        since = folder / "first"
        for number, (before, restores, beside) in enumerate(saves):
            for each in before:
                step += 1
                change(client, *each, step)
            at, expected = folder / f"step-{number}", folder / f"all-{number}"
            client.save(str(expected))
            saving = client.start_save(str(at), since=str(since))
            for each in beside:
                step += 1
                change(client, *each, step)
            manifest = saving.wait()
            assert state(at) == state(expected)
            assert manifest.rows == read_manifest(expected).rows == chain.verify(at).rows
            if restores:
                assert other.restore(str(at)).rows == sum(manifest.rows.values())
                other.save(str(folder / f"again-{number}"))
                assert state(folder / f"again-{number}")[0] == state(expected)[0]
            since = at
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A full checkpoint and two increments, and the state of each."""
    folder = tmp_path_factory.mktemp("steps")
    with filled() as client:
        client.save(str(folder / "step-0"), tracks=True)
        pushed(client, "user", KEYS[:50], 2)
        client.delete("item", KEYS[50:80])
        client.save(str(folder / "step-1"), since=str(folder / "step-0"))
        pushed(client, "user", KEYS[20:90], 3)
        pushed(client, "item", KEYS[60:70], 3)  # gone and here again
        client.save(str(folder / "step-2"), since=str(folder / "step-1"))
        client.save(str(folder / "all"))
    return folder


def test_an_increment_has_what_changed_only(steps):
    full, first, second = read_manifest(steps / "step-2").chain
    assert [path.directory for path in (full, first, second)] == [str(steps / f"step-{n}") for n in range(3)]
    assert [sum(part["rows"].get("user", 0) for part in each.parts) for each in (full, first, second)] == [3000, 50, 70]
    assert [sum(part["rows"].get("item", 0) for part in each.parts) for each in (first, second)] == [0, 2980]  # swept
    assert first.rows == {"user": 3000, "item": 2970}
    assert second.rows == {"user": 3000, "item": 2980}
    assert state(steps / "step-2") == state(steps / "all")


def test_inspection_shows_what_it_stands_on(steps):
    shown = inspect(steps / "step-2")
    assert [(each["holds"], each["rows"]) for each in shown["stands_on"]] == [("all", 6000), ("changes", 50)]
    assert shown["tables"]["item"]["rows"] == 2980
    assert sum(shown["tables"]["item"]["slots"].values()) == 2980
    assert "stands_on" not in inspect(steps / "step-0")
    key = int(KEYS[20])
    assert chain.find_row(steps / "step-2", "user", key).image == state(steps / "all")[0]["user", key]
    assert chain.find_row(steps / "step-2", "item", int(KEYS[75])) is None
    assert chain.find_row(steps / "step-0", "item", int(KEYS[75])) is not None


def test_other_buckets_and_names_come_as_from_a_full_one(steps, tmp_path):
    spec = ps.ClusterSpec.model_validate({"tables": {"people": TWO_TABLES.tables["user"]}, "num_buckets": 4})
    with ps.local(spec, shards=3) as one, ps.local(spec) as other:
        for client, source in ((one, "step-2"), (other, "all")):
            assert client.restore(str(steps / source), mapping={"people": "user"}).rows == 3000
        np.testing.assert_array_equal(one.pull("people", KEYS), other.pull("people", KEYS))


def test_a_base_that_is_missing_or_replaced_is_refused(steps, tmp_path):
    shutil.copytree(steps, tmp_path / "moved")  # the whole chain may move
    folder = tmp_path / "moved"
    assert state(folder / "step-2") == state(steps / "all")
    shutil.rmtree(folder / "step-1")
    with ps.local(TWO_TABLES) as client:
        with pytest.raises(CheckpointError, match=r"step-2 is an increment and needs .*step-1: .*does not exist"):
            client.restore(str(folder / "step-2"))
        shutil.copytree(steps / "step-0", folder / "step-1")
        with pytest.raises(CheckpointError, match=r"of what was saved in .*step-1 before it was replaced"):
            client.restore(str(folder / "step-2"))
        shutil.rmtree(folder / "step-1")
        shutil.copytree(steps / "step-1", folder / "step-1")
        next((folder / "step-0").glob("rows-*")).unlink()
        with pytest.raises(CheckpointError, match=r"step-2 is an increment .*step-1 is an increment .* is missing"):
            client.restore(str(folder / "step-2"))


def test_a_chain_at_a_uri(tmp_path):
    uri = f"fsspec+memory://chain-{tmp_path.name}"
    with filled() as client:
        client.save(f"{uri}/1", tracks=True)
        pushed(client, "user", KEYS[:9], 2)
        saved = client.start_save(f"{uri}/2", since=f"{uri}/1").wait()
        client.save(str(tmp_path / "all"))
        with pytest.raises(CheckpointError, match="different filesystems"):
            client.save(str(tmp_path / "3"), since=f"{uri}/2")
    assert [each.directory for each in saved.chain] == [f"{uri}/1", f"{uri}/2"]
    assert state(f"{uri}/2") == state(tmp_path / "all")


@pytest.mark.parametrize("member", ["step-0", "step-1"])
def test_damage_below_is_found(steps, tmp_path, member):
    folder = tmp_path / "copy"
    shutil.copytree(steps, folder)
    path = next((folder / member).glob("rows-*"))
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{member}/rows-.*damaged"):
        chain.verify(folder / "step-2")


def test_a_full_one_comes_after_many_and_after_a_restore(tmp_path):
    with filled() as client:
        client.save(str(tmp_path / "0"), tracks=True)
        lengths = []
        for number in range(1, 6):
            pushed(client, "user", KEYS[:1], number + 1)
            saving = client.start_save(
                str(tmp_path / f"{number}"), since=str(tmp_path / f"{number - 1}"), max_increments=3
            )
            lengths.append(len(saving.wait().chain))
        assert lengths == [2, 3, 4, 1, 2]
        with pytest.raises(RequestError, match="since itself"):
            client.save(str(tmp_path / "5"), since=str(tmp_path / "5"))
        assert client.start_save(str(tmp_path / "6"), since=str(tmp_path / "4")).wait().base is None  # not the latest
        assert client.start_save(str(tmp_path / "7"), since=str(tmp_path / "none")).wait().base is None
        client.restore(str(tmp_path / "7"))
        assert client.start_save(str(tmp_path / "8"), since=str(tmp_path / "7")).wait().base is None
        pushed(client, "user", KEYS[:2000], 9)
        assert client.start_save(str(tmp_path / "9"), since=str(tmp_path / "8")).wait().base is not None
        pushed(client, "item", KEYS[:2000], 9)
        assert client.start_save(str(tmp_path / "10"), since=str(tmp_path / "9")).wait().base is not None
        assert client.start_save(str(tmp_path / "11"), since=str(tmp_path / "10")).wait().base is None  # half the bytes


def saved(driver, asked, path):
    pieces, said = driver.saved(asked)
    path.write_bytes(b"".join(pieces))
    with checkpoint.open_part(LocalPlace(path.parent), path.name, shown=str(path)) as part:
        found = list(part.records)
        return part.start.get("increments", {}), found, said


def test_buckets_that_came_or_were_dropped_are_written_wholly(tmp_path):
    driver = Driver(shards=2)  # owns the lower half
    mine, other = keys_in(range(8), each=5), keys_in(range(8, NUM_BUCKETS), each=5)
    driver.do(push(mine), sequence=1)
    saved(driver, Mark(7, 0, True), tmp_path / "1")
    driver.place(shards=1, epoch=2)
    driver.do(push(other), sequence=2, epoch=2)
    driver.do(push(mine[:1]), sequence=3, epoch=2)
    driver.table.drop_bucket(3)
    sure, records, said = saved(driver, Mark(8, 7, True), tmp_path / "2")
    bits = np.unpackbits(np.frombuffer(sure["user"], np.uint8), bitorder="little")
    assert np.flatnonzero(bits).tolist() == [0, 1, 2, 4, 5, 6, 7]
    keys = np.concatenate([record.keys for record in records])
    assert sorted(keys.tolist()) == sorted([int(mine[0]), *other.tolist()])
    assert (said["increment"], said["held"]) == (True, {"user": len(mine) - 5 + len(other)})
    assert len(driver.table.watchers._all) == 1


def test_what_was_never_there_leaves_no_trace(tmp_path):
    driver = Driver()
    keys = keys_in(range(4), each=3)
    driver.do(push(keys[:6]), sequence=1)
    saved(driver, Mark(7, 0, True), tmp_path / "1")
    driver.do(push(keys[6:]), sequence=2)
    driver.do(call("delete", keys=keys[3:]), sequence=3)
    _, records, _ = saved(driver, Mark(8, 7, True), tmp_path / "2")
    named = {int(key): record.is_gone for record in records for key in record.keys}
    assert named == dict.fromkeys(keys[3:6].tolist(), True)


def test_nothing_is_watched_before_it_is_asked_for(tmp_path):
    driver = Driver()
    driver.saved()
    assert not driver.table.watchers._all
    saved(driver, Mark(7, 0, True), tmp_path / "1")
    driver.saved()  # a full one between does not end it
    driver.do(push(keys_in([3], each=1)), sequence=1)
    sure, records, _ = saved(driver, Mark(8, 7, True), tmp_path / "2")
    assert sure
    assert [(record.bucket, len(record.keys)) for record in records if len(record.keys)] == [(3, 1)]
    assert not saved(driver, Mark(9, 7, True), tmp_path / "3")[0]  # not since the latest mark


@pytest.mark.parametrize(
    ("directory", "start", "way"),
    [
        ("/a/b/step-1", "/a/b/step-2", "../step-1"),
        ("/a/b", "/a", "./b"),
        ("file:///a/b", "/a/c", "../b"),
        ("s3://bucket/a/1?region=x", "s3://bucket/a/2?region=x", "../1"),
    ],
)
def test_ways_between_folders(directory, start, way):
    assert relative(directory, start) == way
    assert joined(start, way) == directory.removeprefix("file://")


def test_folders_of_two_filesystems_have_no_way():
    with pytest.raises(CheckpointError, match="different filesystems"):
        relative("s3://bucket/a", "/a")


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_the_files_of_any_shard_may_come_first(tmp_path, first):
    with filled(shards=3) as client:
        client.save(str(tmp_path / "full"), tracks=True)
        pushed(client, "user", KEYS[:100], 2)
        client.save(str(tmp_path / "next"), since=str(tmp_path / "full"))
        for name in ("full", "next"):
            manifest = read_manifest(tmp_path / name)
            found = [
                (r.table, r.bucket, r.keys.tolist(), shard) for r, shard in chain.live_records(manifest, first=first)
            ]
            assert found[0][3] == first % 3
            assert sorted(found) == sorted(
                (r.table, r.bucket, r.keys.tolist(), shard) for r, shard in chain.live_records(manifest)
            )


def test_a_file_without_wanted_buckets_is_not_read_beyond_its_start(tmp_path):
    with filled(shards=2) as client:
        client.save(str(tmp_path))
    manifest = read_manifest(tmp_path)
    ends = {}
    for part in manifest.parts:  # damage behind the start, which only reading on can find
        with manifest.open(part) as opened:
            buckets = set(chain.buckets_of(opened, TWO_TABLES.num_buckets))
        path = tmp_path / part["file"]
        ends[part["shard"]] = buckets
        path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    assert ends[0] | ends[1] == set(range(TWO_TABLES.num_buckets))
    assert not ends[0] & ends[1]
    read = []
    with pytest.raises(CheckpointError, match=r"rows-0001-of-0002"):
        for record, shard in chain.live_records(manifest, lambda _, bucket: bucket in ends[1]):
            read.append((record.bucket, shard))
    assert {shard for _, shard in read} == {1}
    assert {bucket for bucket, _ in read} == ends[1]
    with pytest.raises(CheckpointError, match=r"rows-0000-of-0002"):
        list(chain.live_records(manifest, lambda _, bucket: bucket in ends[1], reads_all=True))
