"""The public data sets through their recipes; skipped where absent (WEIR_DATA names another place)."""

import os
from pathlib import Path

import numpy as np
import pytest

from workers.config import load_config
from workers.samples.open import open_splits

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("WEIR_DATA", ROOT.parent / "shared" / "data"))

pytestmark = pytest.mark.data


def need(name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there; set WEIR_DATA to the directory that has it")


def test_frappe() -> None:
    need("frappe")
    splits = open_splits(load_config(ROOT / "configs" / "frappe_deepfm.yaml", [f"data.root={DATA}"]))
    samples = {name: split.samples() for name, split in splits.items()}
    assert [batch.size for batch in samples.values()] == [202_027, 57_722, 28_860]
    keys = np.concatenate([batch.bags["main"].keys.reshape(-1, 10) for batch in samples.values()])
    assert len(np.unique(keys)) <= 5382
    assert (keys >> np.uint64(52) == np.arange(10)).all()
    assert samples["train"].labels.mean() == pytest.approx(1 / 3, abs=0.01)


def test_criteo() -> None:
    need("criteo")
    splits = open_splits(load_config(ROOT / "configs" / "criteo_deepfm.yaml", [f"data.root={DATA}"]))
    samples = {name: split.samples() for name, split in splits.items()}
    assert [batch.size for batch in samples.values()] == [7200, 409, 391]
    train = samples["train"]
    assert train.dense.shape == (7200, 13)
    assert train.dense[:, 1].min() == pytest.approx(-np.log(3))  # I2 goes down to -2
    assert train.bags["main"].keys.shape == (7200 * 26,)
