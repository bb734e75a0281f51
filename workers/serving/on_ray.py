"""Predictions scaled out by Ray Serve: the same HTTP interface, a model of its own in every replica process.

    serve run workers.serving.on_ray:app bundle=/models/ctr replicas=4 threads=2

Ray Serve places the replicas, starts dead ones anew and sends each request to a less busy one. A replica loads a
bundle, or what a model directory points to, from a folder that its node has, and follows pointer and stream as `weir
serve` does: each on its own, so for some seconds of a switch they answer with two versions. gRPC is `weir serve`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from ray import serve
from ray.serve import Application

from ps.errors import RequestError
from ps.strict import Spec
from workers.config.errors import dotted, explain
from workers.readiness import make_ready
from workers.serving.bundle import is_bundle, read_bundle
from workers.serving.options import ServeOptions, read_options
from workers.serving.server import Predictions
from workers.serving.upkeep import open_model
from workers.serving.versions import Models


class ScaleOut(Spec):
    """What `serve run` is given. bundle: path of a bundle, or of a model directory, on every node. cpus: of a replica;
    default: its threads. options: as ServeOptions has them, but for host and ports, which are Ray Serve's.
    """

    bundle: str
    replicas: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    cpus: float | None = Field(default=None, gt=0)
    options: dict[str, Any] = {}


@serve.deployment(name="weir", health_check_period_s=5)
@serve.ingress()
class Replica:
    """One model, in a process of its own."""

    def __init__(self, bundle: str, options: dict[str, Any]) -> None:
        checked = ServeOptions.model_validate(options)
        self._drain_seconds = checked.drain_seconds
        loaded, self._upkeep = open_model(Path(bundle), checked)
        self._predictions = Predictions(loaded.model, checked)
        del loaded  # whose rows may go when another version has taken over
        make_ready()
        self._upkeep.start(self._predictions.predictor, self._predictions.metrics)

    def __serve_build_asgi_app__(self) -> Any:
        return self._predictions.application.asgi

    def __del__(self) -> None:
        self._predictions.close(self._drain_seconds)
        self._upkeep.close()


def app(arguments: dict[str, Any]) -> Application:
    """The application, for `serve run` and serve.run. Raises RequestError for mistakes in the arguments."""
    try:
        scale = ScaleOut.model_validate(arguments)
    except ValidationError as error:
        location, text = explain(error, ScaleOut, arguments)
        raise RequestError(f"{dotted(location)}: {text}") from None
    options = read_options({**scale.options, "threads": scale.threads}, (), ServeOptions)
    directory = Path(scale.bundle).absolute()
    if is_bundle(directory) or Models(directory).current() is None:
        read_bundle(directory)  # says what is wrong with it
    deployment = Replica.options(  # type: ignore[attr-defined]
        num_replicas=scale.replicas,
        max_ongoing_requests=options.queue,
        graceful_shutdown_timeout_s=options.drain_seconds,
        ray_actor_options={"num_cpus": scale.threads if scale.cpus is None else scale.cpus},
    )
    made: Application = deployment.bind(str(directory), options.model_dump(mode="json"))
    return made
