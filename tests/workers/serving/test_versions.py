"""The pointer and the versions: what is published serves, a rollback goes back, and a kill leaves a whole pointer."""

import os
import subprocess
import sys
import threading

import pytest

from workers.serving.retention import kept
from workers.serving.versions import POINTER, VERSION_FILE, Models, VersionError, check_files


def add(models, name, bundle="", markers=None, text="tower"):
    with models.staging() as folder:
        (folder / "tower.onnx").write_text(text)
        return models.add(folder, name, step=len(models.versions()), data_time=12.5, bundle=bundle, markers=markers)


@pytest.fixture
def models(tmp_path):
    """One bundle, and two dense versions that stand on it."""
    models = Models(tmp_path / "models")
    add(models, "whole")
    add(models, "first", "whole", {0: 4, 1: 7})
    add(models, "second", "whole", {0: 9, 1: 8})
    return models


def test_versions_are_listed_as_they_came(models):
    assert [(each.name, each.number, each.is_dense) for each in models.versions()] == [
        ("whole", 1, False),
        ("first", 2, True),
        ("second", 3, True),
    ]
    second = models.version("second")
    assert (second.markers, second.step, second.data_time) == ({0: 9, 1: 8}, 2, 12.5)
    assert models.bundle_path(second) == models.path("whole")
    assert models.current() is None


def test_publishing_and_going_back(models):
    assert models.publish("whole").serial == 1
    models.publish("first")
    assert models.publish("second").history == ("whole", "first")
    back = models.rollback()
    assert (back.version, back.pinned, back.serial, back.history) == ("first", True, 4, ("whole",))
    assert models.current() == back
    assert models.rollback().version == "whole"
    with pytest.raises(VersionError, match="no version served before 'whole'; name one"):
        models.rollback()
    assert models.rollback("second").version == "second"
    after = models.publish("second")  # by hand: rows go on again
    assert (after.version, after.pinned) == ("second", False)


def test_a_trainer_does_not_undo_a_rollback(models):
    models.publish("first")
    models.publish("second", by_trainer=True)
    pinned = models.rollback()
    assert models.publish("second", by_trainer=True) == pinned == models.current()


def test_publishing_what_serves_changes_nothing(models):
    assert models.publish("first") == models.publish("first")


@pytest.mark.parametrize("name", ["", ".", "..", "../whole", "a/b", ".hidden", "a\0b", "a" * 129, "ä", "a\n"])
def test_names_lead_nowhere_else(models, name):
    models.publish("whole")
    for use in (models.publish, models.rollback if name else models.publish, models.version, models.path):
        with pytest.raises(VersionError, match="is no name of a version"):
            use(name)


def test_what_is_not_there_is_refused(models):
    with pytest.raises(VersionError, match="has no version 'third'; it has whole, first, second"):
        models.publish("third")
    assert models.current() is None
    with pytest.raises(VersionError, match="has a version 'first' already"):
        add(models, "first", "whole", {0: 1})
    with pytest.raises(VersionError, match="version 'first' is no bundle"):
        add(models, "third", "first", {0: 1})
    assert not list(models.path("whole").parent.glob(".*"))


@pytest.mark.parametrize("file", [POINTER, f"versions/first/{VERSION_FILE}"])
def test_a_changed_file_is_found(models, file):
    models.publish("first")
    path = models.directory / file
    text = path.read_text()
    for damaged in (text.replace("first", "frist"), text[:20], "[]", "{}", "\0", '{"format": 2}'):
        path.write_text(damaged)
        with pytest.raises(VersionError, match=path.name):
            models.current() if file == POINTER else models.version("first")


def test_a_changed_tower_is_found(models):
    version, folder = models.version("first"), models.path("first")
    check_files(folder, version)
    (folder / "tower.onnx").write_text("tewer")
    with pytest.raises(VersionError, match=r"tower\.onnx was changed after it was written"):
        check_files(folder, version)
    (folder / "tower.onnx").unlink()
    with pytest.raises(VersionError, match="cannot be read"):
        check_files(folder, version)


def test_what_stays(models):
    add(models, "other")
    versions = models.versions()
    assert kept(versions, "other", None, 1) == {"other"}
    assert kept(versions, "first", None, 1) == {"other", "first", "whole"}
    assert kept(versions, "other", "first", 1) == {"other", "first", "whole"}
    assert kept(versions, "other", None, 2) == {"other", "second", "whole"}


PUBLISHER = """
import os, random, signal, sys, time
from workers.serving.retention import prune
from workers.serving.versions import Models, check_files

def publish_for_ever(models, start, end):
    for number in range(start, end):
        with models.staging() as folder:
            (folder / "tower.onnx").write_text(str(number) * 1000)
            models.add(folder, f"v{number}", step=number, data_time=0.0, bundle="whole", markers={0: number})
        models.publish(f"v{number}")
        if number % 3 == 0:
            models.rollback()
            models.publish(f"v{number}")
        prune(models, 30)

models = Models(sys.argv[1])
"""
KILLED = (
    PUBLISHER
    + """
random.seed(5)
for kill in range(40):
    pid = os.fork()
    if pid == 0:
        publish_for_ever(models, 1 + max(version.step for version in models.versions()), 1 << 30)
    time.sleep(random.random() * 0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    version = models.version(models.current().version)
    check_files(models.path(version.name), version)
print(models.current().serial)
"""
)


def test_a_kill_leaves_a_whole_pointer(tmp_path):
    """kill -9 at random instants, while others read: the pointer always names a version whose files are whole."""
    models, wrong, ends = Models(tmp_path), [], threading.Event()
    add(models, "whole")
    models.publish("whole")

    def read():
        while not ends.wait(0.001):
            pointer = models.current()
            try:
                version = models.version(pointer.version)
                check_files(models.path(version.name), version)
            except VersionError as error:
                if models.current() == pointer:  # else it was removed, for another serves
                    wrong.append(error)
                    return

    reader = threading.Thread(target=read)
    reader.start()
    ran = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, capture_output=True)
    ends.set()
    reader.join()
    assert not wrong
    assert int(ran.stdout) > 10  # publications between the kills
    with models.locked():  # nobody holds it any more
        models.sweep()
    assert not list((tmp_path / "versions").glob(".*"))


def test_two_publishers_take_turns(tmp_path):
    models = Models(tmp_path)
    add(models, "whole")
    code = PUBLISHER + "publish_for_ever(models, int(sys.argv[2]), int(sys.argv[2]) + 12)"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(start)]) for start in (1000, 2000)]
    assert [process.wait() for process in processes] == [0, 0]
    versions = models.versions()
    assert [version.number for version in versions] == list(range(1, 26))
    assert models.current().version in ("v1011", "v2011")


def test_a_live_writer_is_left_alone(models):
    with models.staging() as folder:
        (folder / "tower.onnx").write_text("half")
        other = Models(models.directory)
        with other.locked():
            other.sweep()
        assert folder.exists()
    assert not folder.exists()


def test_a_lock_that_is_never_let_go_is_said(models, monkeypatch):
    monkeypatch.setattr("workers.serving.versions.LOCK_SECONDS", 0.1)
    with models.locked(), pytest.raises(VersionError, match=r"another process has held .*LOCK for 0\.1 s"):
        Models(models.directory).publish("first")
    assert models.current() is None
    assert os.listdir(models.directory / "versions")
