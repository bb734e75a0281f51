"""cluster.yaml, judged by Ray's own validator, offers what the placement asks for."""

from pathlib import Path

import pytest
import yaml

util = pytest.importorskip("ray.autoscaler._private.util")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(config):
    prepared = util.prepare_config(config)
    util.validate_config(prepared)
    assert prepared["head_node_type"] == "head"


def test_ray_refuses_a_broken_one(config):
    config["available_node_types"]["ps"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        util.validate_config(util.prepare_config(config))


def test_nodes_offer_the_resources_of_the_placement(config):
    kinds = config["available_node_types"]
    assert kinds["ps"]["resources"]["ps"] >= 1
    assert kinds["worker"]["resources"]["worker"] >= 1
    assert kinds["head"]["resources"]["CPU"] == 0
    assert "ps" not in kinds["worker"]["resources"]
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) <= config["max_workers"]


def test_what_is_not_uploaded_is_listed():
    ignored = (ROOT / ".rayignore").read_text().split("\n")
    assert {".git", ".venv"} <= set(ignored)
    assert not {"ps", "workers", "configs", "pyproject.toml"} & set(ignored)
