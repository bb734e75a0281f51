"""Same bits through Ray shards."""

import pytest

from ps import actor
from tests.ps.client.test_same_bits import SPEC, check_equal, one_shard, train  # noqa: F401  a fixture

pytestmark = pytest.mark.cluster


def test_ray_shards_give_the_same_bits(ray_session, one_shard):  # noqa: F811
    actor.start_cluster(SPEC, 4, "bits", cpus_per_shard=0.2)
    try:
        with actor.connect_cluster("bits") as client:
            check_equal(train(client), one_shard)
    finally:
        actor.stop_cluster("bits")
