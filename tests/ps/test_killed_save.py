"""kill -9 at random instants of a save: the previous checkpoint is whole, the next save clears away what was left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# A process without threads makes the pieces of some checkpoints once, then forks one child after another, kills each
# at a random instant of its saves and reads what is there.
SAVER = """
import json, mmap, os, random, signal, struct, sys, time
from pathlib import Path
import msgpack
from ps import chain, checkpoint
from ps.cut import ALL_ROWS, Mark
from tests.ps.driving import SPEC, Driver, keys_in, push
from workers.training.runs import keep_newest, newest

folder, how, num_kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
saves = []
drivers = [Driver(shards=2, shard=shard) for shard in range(2)]
for number in range(4):
    keys = [keys_in(range(8 * shard, 8 * shard + 8), each=5 * (number + 1)) for shard in range(2)]
    for driver, mine in zip(drivers, keys):
        driver.do(push(mine), sequence=number + 1)
    asked = Mark(number + 1, number, True) if how == "increments" else ALL_ROWS
    saves.append([driver.saved(asked) for driver in drivers])
rows = [sum(said["held"]["user"] for _, said in save) for save in saves]
assert len(set(rows)) == 4

def save(where, number):
    parts = []
    for shard, (pieces, said) in enumerate(saves[number % 4]):
        parts.append(msgpack.packb({**checkpoint.write_part(where, shard, 2, iter(pieces)), **said}))
    before = checkpoint.read_manifest(folder / f"step-{number - 1}") if how == "increments" and number % 4 else None
    checkpoint.write_manifest(where, SPEC, parts, {"save": number}, id=number + 1, base=before)

def child(first, done):
    number = first
    while True:
        save(folder if how == "one folder" else folder / f"step-{number}", number)
        struct.pack_into("q", done, 0, number)
        if how != "one folder":
            keep_newest(folder, 1)
        number += 1

random.seed(1)
done, torn, counts = mmap.mmap(-1, 8), 0, []
started = time.monotonic()
save(folder if how == "one folder" else folder / "step-0", 0)
once = time.monotonic() - started
for kill in range(num_kills):
    first = struct.unpack_from("q", done)[0] + 1
    pid = os.fork()
    if pid == 0:
        child(first, done)
    time.sleep(random.random() * 4 * once)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    last = struct.unpack_from("q", done)[0]
    where = folder if how == "one folder" else newest(folder)
    found = chain.verify(where)
    number = found.manifest.extra["save"]
    assert number in (last, last + 1), (number, last)
    assert found.rows["user"] == rows[number % 4]
    torn += len([path for path in folder.rglob("*") if path.is_file()]) > 3 * len(found.manifest.chain)
    struct.pack_into("q", done, 0, number)
last = struct.unpack_from("q", done)[0] + 1
save(folder if how == "one folder" else folder / f"step-{last}", last)
if how != "one folder":
    keep_newest(folder, 1)
needed = last % 4 + 1 if how == "increments" else 1
print(json.dumps({"torn": torn, "needed": needed, "left": sorted(p.name for p in folder.rglob("*") if p.is_file())}))
"""


@pytest.mark.parametrize("how", ["one folder", "retention", "increments"])
def test_the_previous_checkpoint_is_whole_after_a_kill(tmp_path, how):
    num_kills = 60
    run = subprocess.run(
        [sys.executable, "-c", SAVER, str(tmp_path), how, str(num_kills)],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["torn"] > num_kills / 10, "the kills missed the saves"
    assert answer["left"][0] == "MANIFEST.json"
    assert len(answer["left"]) == 3 * answer["needed"], "a killed save left files that the next one did not remove"
