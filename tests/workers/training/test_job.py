"""Whole jobs in this process: results, stopping, checkpoints to the same bits, the best weights kept."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors

from ps import checkpoint
from ps.checkpoint import MANIFEST, read_manifest
from ps.errors import RequestError
from ps.places import open_place
from tests.workers.training.recipe import load
from workers.training.dense import FILE
from workers.training.job import evaluate, train
from workers.training.runs import InterruptedRunError
from workers.training.trainer import Trainer

RESULT_KEYS = [
    "auc",
    "logloss",
    "gauc",
    "valid_auc",
    "epochs",
    "samples",
    "samples_per_second",
    "rows",
    "bytes_per_row",
    "cache_hit_rate",
    "checkpoint",
    "best_possible_auc",
]


def rows(checkpoint):
    """{(table, key): encoded row} of a checkpoint, whatever the shards that wrote it."""
    manifest = read_manifest(checkpoint)
    found = {}
    for part in manifest.parts:
        with manifest.open(part) as opened:
            for record in opened.records:
                for key, image in zip(record.keys.tolist(), record.images, strict=True):
                    found[record.table, key] = image.tobytes()
    return found


def assert_same_bits(a, b):
    assert rows(a) == rows(b)
    dense, other = (load_tensors(open_place(each).open(FILE).read()) for each in (a, b))
    assert dense.keys() == other.keys()
    for name in dense:
        np.testing.assert_array_equal(dense[name], other[name], err_msg=name)


def test_result_has_what_is_promised_and_learns(tmp_path):
    config = load(tmp_path, {"train.early_stopping": {"metric": "auc", "patience": 2}, "train.epochs": 4})
    result = train(config)
    assert set(RESULT_KEYS) <= result.keys()
    assert result["samples"] == result["epochs"] * 2000
    assert 0.55 < result["auc"] <= result["best_possible_auc"] + 0.03
    assert json.loads((tmp_path / "runs/small/0001/result.json").read_text())["auc"] == result["auc"]
    again = evaluate(config, type(tmp_path)(result["checkpoint"]))
    assert again["auc"] == result["auc"]
    assert again["logloss"] == result["logloss"]


def test_same_seed_same_bits_and_another_seed_others(tmp_path):
    runs = [
        train(load(tmp_path, {"runs": str(tmp_path / n), "seed": seed})) for n, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    assert_same_bits(runs[0]["checkpoint"], runs[1]["checkpoint"])
    assert runs[0]["logloss"] == runs[1]["logloss"] != runs[2]["logloss"]


def test_shards_and_transport_do_not_change_the_loss(tmp_path):
    """One shard or three, in this process or over gRPC: equal to the last bit."""
    losses = set()
    for name, placement, shards in (("a", "inprocess", 1), ("b", "inprocess", 3), ("c", "process", 2)):
        changes = {"runs": str(tmp_path / name), "cluster.placement": placement, "cluster.shards": shards}
        result = train(load(tmp_path, changes))
        losses.add((result["auc"], result["logloss"], result["calibration"]))
    assert len(losses) == 1


@pytest.mark.parametrize("incremental", [False, True])
def test_restore_ends_where_an_uninterrupted_run_ends(tmp_path, incremental):
    """Interrupted at a step in the middle of the second epoch, and gone on: the same bits."""
    stopping = {"train.early_stopping": {"metric": "logloss", "patience": 3}, "train.epochs": 3}
    whole = train(load(tmp_path, {**stopping, "runs": str(tmp_path / "whole")}))
    options = {"checkpoint.every_steps": 7, "checkpoint.incremental": incremental, "checkpoint.keep": 9}
    config = load(tmp_path, {**stopping, **options})
    stopped = threading.Event()
    interrupt_after(tmp_path / "runs/small/0001/checkpoints/step-21", stopped)
    with pytest.raises(InterruptedRunError):
        train(config)
    stopped.set()
    first, second = (read_manifest(tmp_path / f"runs/small/0001/checkpoints/step-{step}") for step in (7, 14))
    assert first.base is None
    assert (second.base is not None) == incremental
    resumed = train(config)
    assert resumed["run"].endswith("0001")
    for name in ("auc", "logloss", "steps", "epochs", "samples"):
        assert resumed[name] == whole[name], name
    assert_same_bits(whole["checkpoint"], resumed["checkpoint"])


def test_the_best_weights_are_kept_rows_too(tmp_path):
    """A learning rate that overfits: the result is that of the best evaluation, not of the last."""
    config = load(
        tmp_path,
        {"train.early_stopping": {"metric": "auc", "patience": 3}, "train.epochs": 60, "train.learning_rate": 0.2},
    )
    result = train(config)
    lines = (tmp_path / "runs/small/0001/valid.csv").read_text().splitlines()
    column = lines[0].split(",").index("auc")
    curve = [float(line.split(",")[column]) for line in lines[1:]]
    assert result["valid_auc"] == max(curve)
    assert result["valid_auc"] > curve[-1]
    assert os.path.basename(result["checkpoint"]) == f"step-{lines[1 + int(np.argmax(curve))].split(',')[0]}"


def test_staleness_and_cache_train_too(tmp_path):
    client = {"staleness": 6, "wire": "bf16", "cache": {"rows": 64, "max_age_steps": 3, "min_count": 1}}
    result = train(load(tmp_path, {"cluster.client": client, "train.epochs": 4}))
    assert result["cache_hit_rate"] > 0.2
    assert result["auc"] > 0.55


def test_gradient_thresholds_drop_and_count(tmp_path):
    result = train(load(tmp_path, {"cluster.client": {"drop_below": 1e9}}))
    assert result["rows"] == 0
    assert result["dropped_gradients"] > 0


def test_a_batch_that_never_fills_is_a_mistake(tmp_path):
    config = load(tmp_path, {"data.drop_last": True, "data.batch_size": 4000})
    with pytest.raises(RequestError, match=r"data\.train: 2000 rows are less than one whole batch of 4000"):
        train(config)


def test_max_steps_ends_in_the_middle_of_an_epoch(tmp_path):
    result = train(load(tmp_path, {"train.max_steps": 5}))
    assert (result["steps"], result["samples"]) == (5, 5 * 128)
    assert 0 < result["samples_per_second"] < 1e7


def interrupt_after(checkpoint, stopped):
    """Ctrl-C to this process once the checkpoint is complete, as a person would."""

    def watch():
        while open_place(checkpoint).size(MANIFEST) is None and not stopped.is_set():
            time.sleep(0.001)
        if not stopped.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def test_a_run_starts_from_a_checkpoint_of_another_recipe(tmp_path, capsys):
    """Other optimizer and codec, other buckets: what is learnt comes along, and what does not is said."""
    before = train(load(tmp_path, {"runs": str(tmp_path / "before")}))
    changes = {
        "runs": str(tmp_path / "after"),
        "tables.main.segments.embedding.codec": "fp32",
        "tables.main.segments.linear.optimizer": {"name": "adagrad", "learning_rate": 0.05},
        "cluster.num_buckets": 32,
        "checkpoint": {"start_from": before["checkpoint"]},
    }
    evaluated = evaluate(load(tmp_path, changes), type(tmp_path)(before["checkpoint"]))
    assert evaluated["auc"] == before["auc"]  # bf16 and fp32 hold the same values
    capsys.readouterr()
    after = train(load(tmp_path, {**changes, "train.epochs": 1}))
    said = capsys.readouterr().err
    assert "codec: main.embedding bf16 -> fp32" in said
    assert "optimizer: main.linear ftrl -> adagrad: its state starts anew" in said
    assert "num_buckets: 16 -> 32" in said
    assert after["epochs"] == 1
    assert after["auc"] > before["auc"] - 0.02
    # A finished run is not continued: the same command begins again from the same checkpoint, to the same bits.
    again = train(load(tmp_path, {**changes, "train.epochs": 1}))
    assert_same_bits(after["checkpoint"], again["checkpoint"])


def test_a_tower_of_another_shape_starts_anew_and_names_are_mapped(tmp_path, capsys):
    before = train(load(tmp_path, {"runs": str(tmp_path / "before"), "train.epochs": 1}))
    tables = load(tmp_path).model_dump(mode="json")["tables"]
    changes = {
        "runs": str(tmp_path / "after"),
        "train.epochs": 1,
        "model.hidden": [8],
        "tables": {"things": tables["main"]},
        "checkpoint": {"start_from": before["checkpoint"]},
    }
    train(load(tmp_path, changes))
    said = capsys.readouterr().err
    assert "new: table things starts without rows" in said
    assert "dropped: table main" in said
    assert "the tower starts at its initial weights" in said
    mapped = {**changes["checkpoint"], "mapping": {"things": "main"}}
    result = train(load(tmp_path, {**changes, "runs": str(tmp_path / "mapped"), "checkpoint": mapped}))
    assert "renamed: table things was main" in capsys.readouterr().err
    assert result["rows"] >= before["rows"]


def test_checkpoints_are_written_while_training_goes_on(tmp_path, monkeypatch):
    """With a disk that takes its time every checkpoint is still the instant it began, and the last ones are kept."""
    write, steps = checkpoint.write_part, []

    def slowly(*arguments):
        time.sleep(0.2)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write_part", slowly)
    started = Trainer.start_save

    def noted(trainer, directory, keep=None, **options):
        steps.append((trainer.position.step, trainer.saving is not None))
        started(trainer, directory, keep, **options)

    monkeypatch.setattr(Trainer, "start_save", noted)
    changes = {"train.epochs": 1, "checkpoint.every_steps": 3, "checkpoint.keep": 3}
    slow = train(load(tmp_path, {"runs": str(tmp_path / "slow"), **changes}))
    assert sum(busy for _, busy in steps) > 2, "training did not go on"
    monkeypatch.undo()
    quick = train(load(tmp_path, {"runs": str(tmp_path / "quick"), **changes}))
    assert slow["logloss"] == quick["logloss"]
    names = [sorted(p.name for p in (tmp_path / run / "small/0001/checkpoints").iterdir()) for run in ("slow", "quick")]
    assert names[0] == names[1]
    assert len(names[0]) == 3
    for name in names[0]:
        assert_same_bits(*(tmp_path / run / "small/0001/checkpoints" / name for run in ("slow", "quick")))
