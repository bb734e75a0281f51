"""Whether the memory limits of tables lie below what kills a process for its memory: its cgroups, the machine, Ray.

A limit is of one table at one shard, so what counts on a node is the sum over its tables, times the shards there and
their standbys, which have the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from ps.byte_sizes import show_bytes
from ps.errors import RequestError
from ps.spec import ClusterSpec

_MIB = 1 << 20
_NO_LIMIT = 1 << 60  # cgroup v1 writes its greatest number where there is none
Read: TypeAlias = Callable[[str], str | None]  # the text of a file, None where there is none


@dataclass(frozen=True)
class Threshold:
    """Memory at which processes are killed. what: whose it is and where it is set, for people."""

    num_bytes: int
    what: str


def read_text(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


def thresholds_here(
    *, ray: bool = False, read: Read = read_text, environment: Mapping[str, str] = os.environ
) -> list[Threshold]:
    """Of this process: the machine's memory, the limit of each of its cgroups and, where `ray`, of Ray's monitor.

    Ray (docs: "Out-Of-Memory Prevention") kills workers above RAY_memory_usage_threshold, by default 0.95, of the
    node's memory or of its cgroup's; RAY_memory_monitor_refresh_ms=0 turns that off.
    """
    found = [*_machine(read), *_cgroups(read)]
    if ray and found and environment.get("RAY_memory_monitor_refresh_ms") != "0":
        share, least = (
            float(environment.get("RAY_memory_usage_threshold", "0.95")),
            min(each.num_bytes for each in found),
        )
        what = f"Ray's RAY_memory_usage_threshold, {share:g} of this node's {show_bytes(least)}"
        found.append(Threshold(int(share * least), what))
    return found


def check_limits(spec: ClusterSpec, shards_here: int, thresholds: Sequence[Threshold]) -> None:
    """Raise RequestError unless all tables of all shards of a node can grow to their limits below every threshold.
    shards_here: standbys too.
    """
    limits = {
        name: table.memory_limit_bytes for name, table in spec.tables.items() if table.memory_limit_bytes is not None
    }
    lowest = min(thresholds, key=lambda threshold: threshold.num_bytes, default=None)
    total = shards_here * sum(limits.values())
    if lowest is None or total <= lowest.num_bytes:
        return
    tables = ", ".join(f"{name!r} {show_bytes(limit)}" for name, limit in limits.items())
    shards = "shards and standbys" if spec.durability.is_replicated else "shards"
    raise RequestError(
        f"memory_limit_bytes of table {tables}: {shards_here} {shards} on this node may take {show_bytes(total)}, "
        f"above {show_bytes(lowest.num_bytes)}, {lowest.what}; a shard's limits may add up to "
        f"{lowest.num_bytes // shards_here // _MIB}MiB here: lower them, or put fewer shards on a node"
    )


def shards_beside(addresses: Sequence[str], shard: int, standby: str = "") -> int:
    """How many shards, itself among them, listen on the same host as `shard`, and of pairs how many standbys, as far as
    one of them can know. addresses: "host:port" of each shard. standby: of its own, where it has one.

    Where standbys of others are it cannot know: it takes all processes to be spread evenly over the hosts that it has
    heard of.
    """
    hosts = [_host(address) for address in addresses]
    here = hosts.count(hosts[shard])
    if not standby:
        return here
    here += _host(standby) == hosts[shard]
    return max(here, -(-2 * len(hosts) // len({*hosts, _host(standby)})))


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _machine(read: Read) -> Iterator[Threshold]:
    for line in (read("/proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            yield Threshold(int(value.split()[0]) * 1024, "the machine's memory")


def _cgroups(read: Read) -> Iterator[Threshold]:
    """Of the process's own cgroup and of all above it: each limits what is inside it.

    In a container the path may be that of the host; what is not there is passed over, and the container's own limit
    stands at the top.
    """
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, file = "/sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        own = PurePosixPath(path)
        for folder in (own, *own.parents):
            place = f"{root}{folder}".rstrip("/") + f"/{file}"
            limit = (read(place) or "max").strip()
            if limit != "max" and int(limit) < _NO_LIMIT:
                yield Threshold(int(limit), f"the limit of its cgroup ({place})")
