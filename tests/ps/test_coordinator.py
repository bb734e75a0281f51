"""The coordinator as a list of events: reports, commits, a shard that comes back empty, its own restart."""

import pytest

from ps.coordinator import Coordinator, Lease
from ps.errors import RequestError, RowsLostError, UnavailableError


def lease(shard, incarnation, *, routing=None, port=None, now=0.0):
    address = f"host:{1000 + shard if port is None else port}"
    return Lease(shard, address, incarnation, routing, pid=1, node="n", renewed_at=now)


def started(num_shards=2):
    coordinator = Coordinator("c", num_shards=num_shards, num_buckets=8)
    for shard in range(num_shards):
        coordinator.renew(lease(shard, 10 + shard))
    routing = coordinator.propose()
    coordinator.commit(routing.epoch)
    return coordinator, routing


def test_a_cluster_is_ready_when_all_shards_have_reported_and_routing_is_committed():
    coordinator = Coordinator("c", num_shards=2, num_buckets=8)
    with pytest.raises(UnavailableError, match="0 of 2 shards"):
        coordinator.routing()
    coordinator.renew(lease(1, 11))
    with pytest.raises(UnavailableError, match=r"shards \[0\] have not reported"):
        coordinator.propose()
    coordinator.renew(lease(0, 10))
    routing = coordinator.propose()
    assert (routing.epoch, routing.addresses) == (1, ("host:1000", "host:1001"))
    with pytest.raises(UnavailableError):
        coordinator.routing()
    coordinator.commit(1)
    assert coordinator.routing() is routing


def test_a_shard_of_another_incarnation_has_lost_its_rows_until_a_restore_commits():
    coordinator, routing = started()
    coordinator.renew(lease(1, 11, routing=routing))
    assert coordinator.routing() is routing
    coordinator.renew(lease(1, 99, port=2222))
    assert coordinator.lost() == [1]
    with pytest.raises(RowsLostError, match=r"shard 1 of cluster 'c' lost its rows .* restore from a checkpoint"):
        coordinator.routing()
    proposed = coordinator.propose()
    assert (proposed.epoch, proposed.addresses) == (2, ("host:1000", "host:2222"))
    with pytest.raises(RowsLostError):
        coordinator.routing()
    coordinator.commit(2)
    assert coordinator.routing() is proposed


def test_an_epoch_is_proposed_once_and_only_the_last_proposal_commits():
    coordinator, _ = started()
    first, second = coordinator.propose(), coordinator.propose()
    assert second.epoch == first.epoch + 1
    with pytest.raises(RequestError, match="another restore has begun"):
        coordinator.commit(first.epoch)
    coordinator.commit(second.epoch)


def test_a_restarted_coordinator_takes_routing_over_from_the_shards():
    _, routing = started()
    coordinator = Coordinator("c", num_shards=2, num_buckets=8)
    coordinator.renew(lease(0, 10, routing=routing))
    coordinator.renew(lease(1, 11, routing=routing))
    assert coordinator.routing().epoch == routing.epoch
    assert coordinator.propose().epoch == routing.epoch + 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_restarted_coordinator_notices_a_shard_that_died_meanwhile(order):
    _, routing = started()
    coordinator = Coordinator("c", num_shards=2, num_buckets=8)
    reports = [lease(0, 10, routing=routing), lease(1, 99)]
    for shard in order:
        coordinator.renew(reports[shard])
    with pytest.raises(RowsLostError, match="shard 1"):
        coordinator.routing()


def test_leases_run_out():
    coordinator, _ = started()
    coordinator.renew(lease(0, 10, now=100.0))
    assert coordinator.silent(105.0) == [1]
    assert coordinator.silent(111.0) == [0, 1]
    with pytest.raises(RequestError, match=r"shards 0\.\.1, not 2"):
        coordinator.renew(lease(2, 1))
