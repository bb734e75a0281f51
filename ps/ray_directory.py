"""Where the shards of a cluster on Ray are: asked of its coordinator, which is found by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayActorError

from ps.errors import NoClusterError, UnavailableError, from_wire
from ps.routing import Routing
from ps.wire import weir_pb2 as pb

CALL_SECONDS = 10.0  # one call to the coordinator


class RayDirectory:
    """Asks the coordinator where the shards are."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._coordinator: Any = None

    def routing(self) -> Routing:
        return self._routing("routing")

    def propose(self, owners: NDArray[np.int32] | None = None) -> Routing:
        return self._routing("propose", None if owners is None else owners.astype("<i4").tobytes())

    def commit(self, routing: Routing) -> None:
        self.ask("commit", routing.epoch)

    def ask(self, method: str, *args: Any) -> Any:
        """The outcome of a call to the coordinator. Raises UnavailableError when it does not answer."""
        try:
            if self._coordinator is None:
                self._coordinator = find_coordinator(self.name)
            outcome = ray.get(getattr(self._coordinator, method).remote(*args), timeout=CALL_SECONDS)
        except (RayActorError, GetTimeoutError) as error:
            self._coordinator = None
            raise UnavailableError(
                f"the coordinator of cluster {self.name!r} does not answer ({type(error).__name__}); shards go on"
            ) from error
        if isinstance(outcome, tuple) and outcome[0] != "ok":
            raise from_wire(*outcome)
        return outcome[1] if isinstance(outcome, tuple) else outcome

    def _routing(self, method: str, *args: Any) -> Routing:
        return Routing.from_message(pb.Routing.FromString(self.ask(method, *args)))


def namespace(name: str) -> str:
    return f"weir-{name}"


def find_coordinator(name: str) -> Any:
    """The coordinator's handle. Raises UnavailableError when there is no such cluster."""
    try:
        return ray.get_actor("coordinator", namespace=namespace(name))
    except ValueError:
        raise NoClusterError(f"no cluster {name!r} runs in this Ray; `weir up CONFIG` starts one") from None
