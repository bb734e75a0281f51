"""The lines of a plan: each a value, and the measured figure or the rule that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ps.byte_sizes import show_bytes
from workers.config import Config
from workers.config.job import BUCKETS_PER_SHARD
from workers.planning.demand import Demand, Nodes
from workers.planning.figures import Figures
from workers.planning.sizing import MAX_BUCKETS, Sizing
from workers.text import aligned


class Line(NamedTuple):
    """shown: the value for people."""

    name: str
    value: float
    shown: str
    basis: str


def plan(config: Config, demand: Demand, nodes: Nodes, figures: Figures) -> list[Line]:
    """From rows to checkpoint. Raises RequestError for what no cluster can hold."""
    sizing = Sizing(config, demand, nodes, figures)
    return [
        *_rows(sizing),
        *_memory(sizing, nodes),
        *_work(sizing),
        *_traffic(sizing),
        *_checkpoint(sizing),
        *_journals(sizing),
    ]


def as_answer(lines: Sequence[Line], figures: Figures) -> dict[str, Any]:
    """Values by name, what each rests on, and whose figures they are."""
    return {
        "plan": {line.name: line.value for line in lines},
        "basis": {line.name: line.basis for line in lines},
        "figures": {"date": figures.date.isoformat(), "machine": figures.machine, "command": figures.command},
    }


def as_text(lines: Sequence[Line], figures: Mapping[str, str]) -> str:
    """For a person. figures: those of `as_answer`."""
    table = aligned(("", "", "rests on"), [(line.name, line.shown, line.basis) for line in lines])
    return f"{table}\nmeasured {figures['date']} on {figures['machine']} by `{figures['command']}`\n"


def _rows(sizing: Sizing) -> list[Line]:
    lines = []
    for name, table in sizing.tables.items():
        rows, row_bytes = sizing.demand.rows[name], sizing.footprints[name].row_bytes
        basis = (
            f"{rows * table.width:.4g} parameters; {row_bytes} bytes a row, "
            f"{sizing.table_bytes(name) / rows:.4g} with index and room to grow, by its layout"
            + (", each with its late segments" if table.late is not None else "")
        )
        lines.append(Line(f"rows.{name}", rows, f"{rows:.4g}", basis))
    return lines


def _memory(sizing: Sizing, nodes: Nodes) -> list[Line]:
    figures, shards, has_standbys = sizing.figures, sizing.copies * sizing.shards, sizing.processes_each > 1
    why = {
        "memory": f"memory, {nodes.fill:g} of {show_bytes(nodes.node_memory)} each",
        "cores": f"cores, {nodes.node_cores} each",
        "network": f"the network, {nodes.load:g} of {nodes.node_network:g} Gbit/s each",
        "copies": "a node at least for each copy" + ", and one for its standbys" * has_standbys,
    }
    per_process = show_bytes(figures.process_bytes)
    held = f"measured: resident {figures.resident_share:.4g} of what tables report, {per_process} a process beside"
    if has_standbys:
        held += "; twice, for each shard has a standby (cluster.durability.mode: replicated)"
    split = f"rule: one core each, at most {nodes.load:g} busy, one a node at least; copies: {sizing.copies}"
    if has_standbys:
        split += f"; with standbys {2 * shards:,} processes"
    most = min(footprint.max_rows for footprint in sizing.footprints.values())
    rule = f"rule: {BUCKETS_PER_SHARD} a shard up to {MAX_BUCKETS:,}; at most {most:,} rows in one"
    return [
        Line("memory_bytes", sizing.memory_bytes, show_bytes(sizing.memory_bytes), held),
        Line("shards", shards, f"{shards:,}", split),
        Line("buckets", sizing.buckets, f"{sizing.buckets:,}", rule),
        Line("nodes", sizing.nodes, f"{sizing.nodes:,}", f"decided by {why[sizing.nodes_by]}"),
    ]


def _work(sizing: Sizing) -> list[Line]:
    figures, copies, demand = sizing.figures, sizing.copies, sizing.demand
    messages, array_bytes, rows = (cores * copies for cores in sizing.shard_cores())
    pull, push = figures.messages["pull"], figures.messages["push"]
    rates = []
    for name in sizing.tables:
        for verb in ("pull", "push"):
            rate, layouts = sizing.table_rate(verb, name)
            rates.append(f"{verb} of {name} {rate / 1e6:.3g} M rows a core-second, from {layouts}")
    sent, clients = sizing.messages() * copies, sizing.client_cores() * copies
    calls = f"rule: calls of {demand.requests_per_call} requests and {demand.updates_per_call} updates"
    return [
        Line("messages_per_second", sent, f"{sent:.4g}", f"{calls}, to each shard with one of their keys"),
        Line(
            "rpc_message_cores",
            messages,
            f"{messages:.4g}",
            f"measured: {pull.shard_messages_per_core_second:.4g} pulls, "
            f"{push.shard_messages_per_core_second:.4g} pushes a core-second at the shard",
        ),
        Line(
            "rpc_byte_cores",
            array_bytes,
            f"{array_bytes:.4g}",
            f"measured: {pull.shard_bytes_per_core_second / 1e6:.4g} MB of pulls, "
            f"{push.shard_bytes_per_core_second / 1e6:.4g} MB of pushes a core-second at the shard",
        ),
        Line("table_cores", rows, f"{rows:.4g}", f"measured: {'; '.join(rates)}"),
        Line(
            "client_cores",
            clients,
            f"{clients:.4g}",
            f"measured: {pull.client_messages_per_core_second:.4g} pulls, "
            f"{push.client_messages_per_core_second:.4g} pushes or {pull.client_bytes_per_core_second / 1e6:.4g} MB, "
            f"{push.client_bytes_per_core_second / 1e6:.4g} MB a core-second at the callers",
        ),
    ]


def _traffic(sizing: Sizing) -> list[Line]:
    received, sent = (each * sizing.copies for each in sizing.network())
    pull, push = (sizing.figures.messages[verb].message_bytes for verb in ("pull", "push"))
    beside = f"the wire's arrays; measured: {pull:.4g} bytes a pull and {push:.4g} a push beside them"
    replicated = sizing.standby_traffic() * sizing.copies
    images = f"; {show_bytes(replicated)}/s of it from primaries to standbys, an image of each pushed row"
    images = images if replicated else ""
    return [
        Line("received_bytes_per_second", received, f"{show_bytes(received)}/s", f"by all shards: {beside}{images}"),
        Line("sent_bytes_per_second", sent, f"{show_bytes(sent)}/s", f"by all shards: {beside}{images}"),
    ]


def _checkpoint(sizing: Sizing) -> list[Line]:
    length, rate = sizing.checkpoint_bytes(), sizing.figures.checkpoint_bytes_per_second
    seconds = length / (sizing.nodes / sizing.copies) / rate
    return [
        Line("checkpoint_bytes", length, show_bytes(length), "the format: key and image of each row, frames"),
        Line("checkpoint_seconds", seconds, f"{seconds:.4g}", f"measured: {rate / 1e6:.4g} MB/s a node, all at once"),
    ]


def _journals(sizing: Sizing) -> list[Line]:
    if not sizing.journal_bytes:
        return []
    basis = "rule: two snapshots of the rows while a new one is written, and the journal that made it due"
    if sizing.processes_each > 1:
        basis += "; twice, for standbys have journals too"
    return [Line("journal_bytes", sizing.journal_bytes, show_bytes(sizing.journal_bytes), basis)]
