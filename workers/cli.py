"""The `weir` command. Human output goes to stderr; with --json stdout carries exactly one JSON object, last.

Exit status: 0 done; 2 a mistake in the request, one clear line; 1 a failure; 130 interrupted (a checkpoint that resumes
is left).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ps.resharding import Move
from workers import model_cli
from workers.answering import Json, of_extra
from workers.answering import answering as _answering
from workers.config import load_config

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(model_cli.app, name="model")

ConfigPath = Annotated[Path, typer.Argument(help="a recipe, see configs/", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a setting, as in data.root=/data")
]
Slots = Annotated[bool, typer.Option("--slots", help="also rows, bytes, norms and coverage of every slot")]
Local = Annotated[bool, typer.Option("--local", help="shards inside this process; needs no Ray")]


@app.command()
def train(config: ConfigPath, overrides: Overrides = None, local: Local = False, as_json: Json = False) -> None:
    """Train and evaluate. Continues the recipe's latest unfinished run from its newest checkpoint."""
    from workers.training.job import train as run

    with _answering(as_json) as answer:
        answer(run(load_config(config, overrides or []), local=local))


@app.command()
def evaluate(
    config: ConfigPath,
    checkpoint: Annotated[str, typer.Option(help="a checkpoint directory, or its URI", show_default=False)],
    overrides: Overrides = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint on the test split."""
    from workers.training.job import evaluate as run

    with _answering(as_json) as answer:
        answer(run(load_config(config, overrides or []), checkpoint, local=local))


@app.command()
def export(
    config: ConfigPath,
    checkpoint: Annotated[str, typer.Option(help="a checkpoint directory, or its URI", show_default=False)],
    out: Annotated[Path, typer.Option(help="the folder to make", show_default=False)],
    codec: Annotated[str, typer.Option(help="of the served rows: fp32, fp16, bf16 or int8")] = "fp32",
    version: Annotated[str | None, typer.Option(help="[step-<step>]", show_default=False)] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="write the rows as Parquet, too")] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Make a serving bundle of a checkpoint: rows, tower as ONNX and torch.export, fields, example requests."""
    with _answering(as_json) as answer:
        with of_extra("export"):
            from workers.exporting.command import export as run
        recipe = load_config(config, overrides or [])
        answer(run(recipe, checkpoint, out, codec=codec, version=version, parquet=parquet))


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="what `weir export` wrote, or a model directory", show_default=False)],
    deltas: Annotated[str | None, typer.Option(help="directory of the stream of changes to follow")] = None,
    shards: Annotated[str | None, typer.Option(help="or HOST:PORT of any shard, which streams them")] = None,
    host: Annotated[str | None, typer.Option(help="[127.0.0.1]")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="[8500; 0 takes a free one]")] = None,
    http_port: Annotated[int | None, typer.Option(help="[8501; 0 takes a free one]")] = None,
    threads: Annotated[int | None, typer.Option(help="that compute one run of the tower [1]")] = None,
    runs: Annotated[int | None, typer.Option(help="of the tower at once [cores / threads, at most 4]")] = None,
    max_candidates: Annotated[int | None, typer.Option(help="of one request [10000]")] = None,
    queue: Annotated[int | None, typer.Option(help="requests that may wait; more are refused [64]")] = None,
    token_file: Annotated[str | None, typer.Option(help="ask for the token in this file, docs/security.md")] = None,
    log: Annotated[str | None, typer.Option(help="directory of the sampled prediction log")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Predictions over gRPC and HTTP, until SIGTERM or Ctrl-C. Needs neither Ray nor torch."""
    from workers.serving.options import ServeOptions, read_options
    from workers.serving.server import serve as run

    with _answering(as_json) as answer:
        given = {
            "host": host,
            "grpc_port": grpc_port,
            "http_port": http_port,
            "threads": threads,
            "runs": runs,
            "max_candidates": max_candidates,
            "queue": queue,
            "security": token_file and {"token_file": token_file},
            "log": log and {"directory": log},
            "deltas": deltas,
            "shards": shards,
        }
        run(bundle, read_options(given, overrides or [], ServeOptions), answer)


@app.command()
def replica(
    bundle: Annotated[Path, typer.Argument(help="what `weir export` wrote", show_default=False)],
    follow: Annotated[
        str | None, typer.Option(help="host:port of a shard, or cluster.deltas.directory [nothing]", show_default=False)
    ] = None,
    host: Annotated[str | None, typer.Option(help="[127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="[8600; 0 takes a free one]")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="of the Prometheus endpoint [a free one]")] = None,
    threads: Annotated[int | None, typer.Option(help="calls that are answered at the same time [8]")] = None,
    token_file: Annotated[str | None, typer.Option(help="ask for the token in this file, docs/security.md")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Rows of a bundle by key over gRPC, kept up with a delta stream. Needs neither Ray nor torch."""
    from workers.serving.options import ReplicaOptions, read_options
    from workers.serving.row_replica import serve_rows as run

    with _answering(as_json) as answer:
        given = {
            "host": host,
            "port": port,
            "metrics_port": metrics_port,
            "threads": threads,
            "security": token_file and {"token_file": token_file},
        }
        run(bundle, follow, read_options(given, overrides or [], ReplicaOptions), answer)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="a bundle, a checkpoint directory, or its URI", show_default=False)],
    key: Annotated[str | None, typer.Option(help="FIELD=VALUE: show the row of one value", show_default=False)] = None,
    slots: Slots = False,
    as_json: Json = False,
) -> None:
    """What a checkpoint or a bundle holds: tables, rows, bytes, slots; verifies checksums; or one row."""
    from workers.inspect import inspect as run
    from workers.slots import shown

    with _answering(as_json, shown) as answer:
        answer(run(path, key, slots=slots))


@app.command()
def plan(
    config: ConfigPath,
    requests: Annotated[str, typer.Option(help="samples served a second, as 1e6", show_default=False)],
    rows: Annotated[list[str] | None, typer.Option(help="N, or TABLE=N for each table", show_default=False)] = None,
    params: Annotated[
        list[str] | None, typer.Option(help="instead of --rows: rows x width", show_default=False)
    ] = None,
    updates: Annotated[str | None, typer.Option(help="samples trained on a second [as many as requests]")] = None,
    keys_per_request: Annotated[str | None, typer.Option(help="[one of each keyed field]")] = None,
    requests_per_call: Annotated[str | None, typer.Option(help="requests whose keys one call carries [1]")] = None,
    updates_per_call: Annotated[str | None, typer.Option(help="[the recipe's data.batch_size]")] = None,
    node_memory: Annotated[str | None, typer.Option(help="[256GiB]")] = None,
    node_cores: Annotated[str | None, typer.Option(help="[32]")] = None,
    node_network: Annotated[str | None, typer.Option(help="Gbit/s, each way [10]")] = None,
    load: Annotated[str | None, typer.Option(help="share of cores and network that may be busy [0.5]")] = None,
    fill: Annotated[str | None, typer.Option(help="share of memory that may be full [0.8]")] = None,
    replicas: Annotated[str | None, typer.Option(help="further copies of all rows [0]")] = None,
    figures: Annotated[Path | None, typer.Option(help="measured figures of your machine, see docs/planning.md")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Memory, shards, nodes, cores, network and checkpoint of a size of job, from measured figures."""
    from workers.planning.demand import read_options
    from workers.planning.figures import read_figures
    from workers.planning.plan import Line, as_answer, as_text
    from workers.planning.plan import plan as run

    lines: list[Line] = []
    with _answering(as_json, lambda answer: as_text(lines, answer["figures"])) as answer:
        recipe, known = load_config(config, overrides or []), read_figures(figures)
        others = {
            "requests": requests,
            "updates": updates,
            "keys_per_request": keys_per_request,
            "requests_per_call": requests_per_call,
            "updates_per_call": updates_per_call,
            "node_memory": node_memory,
            "node_cores": node_cores,
            "node_network": node_network,
            "load": load,
            "fill": fill,
            "replicas": replicas,
        }
        demand, nodes = read_options(recipe, rows=rows or [], params=params or [], options=others)
        lines += run(recipe, demand, nodes, known)
        answer(as_answer(lines, known))


@app.command()
def up(config: ConfigPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Start a long-lived cluster of shards on Ray; `weir train` of the same recipe attaches to it."""
    from workers.training.cluster import up as run

    with _answering(as_json) as answer:
        answer(run(load_config(config, overrides or [])))


@app.command()
def down(config: ConfigPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Stop the recipe's long-lived cluster. Rows are gone, unless it keeps journals: `weir up` goes on with these."""
    from workers.training.cluster import down as run

    with _answering(as_json) as answer:
        answer(run(load_config(config, overrides or [])))


@app.command()
def reshard(
    config: ConfigPath,
    shards: Annotated[int | None, typer.Option(min=1, help="How many shards; default: as many as there are.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Move rows of the running cluster so that this many shards have equal parts. Training goes on meanwhile."""
    from workers.training.cluster import reshard as run

    def report(move: Move) -> None:
        what = f"{len(move.buckets)} buckets, {move.num_rows} rows, from shard {move.source} to {move.target}"
        print(f"{what}: {move.seconds:.2f} s, held {1000 * move.held_seconds:.0f} ms", file=sys.stderr)

    with _answering(as_json) as answer:
        answer(run(load_config(config, overrides or []), shards, report))


@app.command()
def restart(config: ConfigPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Start the shards of the running cluster anew, one after another; it must keep journals. Training goes on."""
    from workers.training.cluster import restart as run

    with _answering(as_json) as answer:
        recipe = load_config(config, overrides or [])
        answer(run(recipe, lambda shard: print(f"shard {shard} is back", file=sys.stderr)))


@app.command()
def status(config: ConfigPath, overrides: Overrides = None, slots: Slots = False, as_json: Json = False) -> None:
    """Shards, rows, bytes, queues of the recipe's long-lived cluster."""
    from workers.slots import shown, with_live_slots
    from workers.training.cluster import status as run

    with _answering(as_json, shown) as answer:
        recipe = load_config(config, overrides or [])
        answer(with_live_slots(run(recipe), recipe) if slots else run(recipe))


def main() -> None:
    """Console entry point."""
    app()


if __name__ == "__main__":
    main()
