"""Joining a Ray cluster, or starting a small one on this machine; and what room it has."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import ray

from ps.errors import NoClusterError, RequestError


def open_ray(address: str | None = None, *, num_cpus: int | None = None, connect_seconds: float = 5.0) -> None:
    """Join the Ray cluster at `address` ("host:port", or "auto" for the one that `ray start` began on this machine), or
    start a small one here where it is None.

    Raises UnavailableError with one line when nobody listens there. Does nothing when Ray is initialised.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
        return
    place = (os.environ.get("RAY_ADDRESS") or _started_by_hand()) if address == "auto" else address
    _check_listening(place, connect_seconds)
    try:
        ray.init(address=place, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "start one with `ray start --head`, or leave the address out"
        if "RAY_AUTH_MODE" not in os.environ:
            remedy = (
                "something listens there; if that Ray wants a token, set RAY_AUTH_MODE=token here (docs/cluster.md)"
            )
        raise NoClusterError(f"no Ray cluster at {place!r}: {reason}; {remedy}") from error


def close_ray() -> None:
    """Leave Ray; ends it where `open_ray` started it."""
    ray.shutdown()


def room_for_shards(shards: int, cpus_per_shard: float) -> tuple[dict[str, float], str]:
    """What one shard asks of Ray, and how shards are laid out. Raises RequestError for fewer units of `ps` than
    shards.
    """
    offered = float(ray.cluster_resources().get("ps", 0))
    if offered == 0:
        return {"CPU": cpus_per_shard}, "PACK"
    if offered < shards:
        raise RequestError(
            f"{shards} shards need {shards} units of the resource `ps`, the nodes offer {offered:g}; "
            "take fewer shards, or raise `ps` in cluster.yaml"
        )
    return {"CPU": cpus_per_shard, "ps": 1.0}, "SPREAD"


def free_resources() -> str:
    """What Ray has left, for messages."""
    free = ray.available_resources()
    return ", ".join(f"{key} {free.get(key, 0):g}" for key in ("CPU", "ps") if key in free or key == "CPU")


def _started_by_hand() -> str:
    """The address that `ray start` left on this machine.

    Not Ray's own "auto", which also joins the private Ray of any other program here, and would end with it.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        raise NoClusterError("no Ray cluster runs on this machine; start one with `ray start --head`") from None


def _check_listening(place: str, connect_seconds: float) -> None:
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise RequestError(f"Ray address {place!r} is not host:port")
    try:
        socket.create_connection((host, int(port)), connect_seconds).close()
    except OSError as error:
        raise NoClusterError(
            f"no Ray cluster at {place}: {error.strerror or error}; start one with `ray start --head --port {port}`"
        ) from error
