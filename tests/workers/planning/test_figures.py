"""Figures from a file, and rates between what was measured."""

import json

import pytest

from ps.errors import RequestError
from tests.workers.planning.fixed import FIGURES
from workers.planning.figures import Figures, read_figures

KNOWN = Figures.model_validate(FIGURES)


@pytest.mark.parametrize(
    ("row_bytes", "rate", "rests_on"),
    [
        (40, 2e7, "fp32 dim 8"),
        (140, 1e7, "fp32 dim 32"),
        (90, 1 / (7.5e-8), "fp32 dim 8 and fp32 dim 32"),  # half-way in time
        (20, 2e7, "fp32 dim 8"),
        (280, 5e6, "fp32 dim 32"),  # twice as long, half as fast
    ],
)
def test_rates_between_and_beyond(row_bytes, rate, rests_on):
    assert KNOWN.rows_per_core_second("pull", "fp32", row_bytes) == (pytest.approx(rate), rests_on)


def test_a_codec_that_was_not_measured_counts_as_a_wider_one():
    assert KNOWN.rows_per_core_second("push", "int8", 24) == (pytest.approx(2e7), "bf16 dim 8")
    wide = Figures.model_validate({**FIGURES, "table": FIGURES["table"][:2]})
    assert wide.rows_per_core_second("push", "bf16", 40) == (pytest.approx(1e7), "fp32 dim 8")


def test_the_package_has_figures_that_were_measured():
    found = read_figures()
    assert {(each.codec, each.dim) for each in found.table} >= {("fp32", 16), ("bf16", 8)}
    assert found.command == "python benchmarks/plan_figures.py"
    assert 0.9 < found.resident_share < 1.1


def test_mistakes_name_file_and_place(tmp_path):
    path = tmp_path / "mine.json"
    with pytest.raises(RequestError, match=r"--figures .*mine\.json: No such file"):
        read_figures(path)
    path.write_text("{")
    with pytest.raises(RequestError, match=r"mine\.json: not JSON"):
        read_figures(path)
    path.write_text(json.dumps({**FIGURES, "process_bytes": 0}))
    with pytest.raises(
        RequestError, match=r"mine\.json: process_bytes: .*benchmarks/plan_figures.py writes such a file"
    ):
        read_figures(path)
    path.write_text(json.dumps(FIGURES))
    assert read_figures(path) == KNOWN
