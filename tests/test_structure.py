"""The shape of the project: who may import whom, what stays in which room, what every file has.

docs/architecture.md says why. A rule lists all that break it.
"""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Rooms from the bottom up. A module imports from its own room and from levels below; rooms side by side do not know
# each other. A name stands for the module and for all below it; the longest one that fits counts.
LEVELS = [
    {
        "words": [
            "ps.types", "ps.byte_sizes", "ps.delta_options", "ps.durability", "ps.errors", "ps.strict", "ps.lifetime",
            "ps.row_code", "ps.security", "ps.spec", "ps.user_modules", "ps.wire.weir_pb2",
        ]
    },
    {"kernels": ["ps.storage.kernels"]},
    {"keys": ["ps.keys", "ps.memory_limits", "ps.places", "ps.routing", "ps.thresholds", "ps.wire"]},
    {"storage": ["ps.storage"], "shared memory": ["ps.shared_memory", "ps.envelope"]},
    {
        "psfuncs": [
            "ps.psfunc", "ps.psfuncs", "ps.record", "ps.chain", "ps.checkpoint", "ps.conversion", "ps.mapping",
            "ps.options", "ps.restoring", "ps.serving_rows",
        ]
    },
    {"transport": ["ps.grpc_shell", "ps.transport"]},
    {
        "shard": [
            "ps.applied", "ps.cut", "ps.deltas", "ps.execution", "ps.giving", "ps.holding", "ps.journal", "ps.loading",
            "ps.moving", "ps.pipe", "ps.request", "ps.schedule", "ps.shard", "ps.synchronous",
        ]
    },
    {"replica": ["ps.delta_folder", "ps.delta_lines", "ps.following", "ps.replica", "ps.served", "ps.turns"]},
    {
        "server": [
            "ps.member", "ps.metrics", "ps.opening", "ps.process", "ps.replica_metrics", "ps.replica_service",
            "ps.server", "ps.work",
        ]
    },
    {
        "client": [
            "ps.cache", "ps.client", "ps.control", "ps.hot", "ps.lookup", "ps.marking", "ps.messages", "ps.pusher",
            "ps.resharding", "ps.rounds", "ps.rows_client", "ps.saving", "ps.sending", "ps.tally", "ps.unsettled",
        ]
    },
    {
        "shells": [
            "ps", "ps.actor", "ps.coordinator", "ps.coordinator_metrics", "ps.pairing", "ps.pairs", "ps.placement",
            "ps.ray_actors", "ps.ray_directory", "ps.ray_resharding", "ps.reporting", "ps.session",
            "ps.shard_process",
        ]
    },
    {"config": ["workers.config", "workers.cores", "workers.metrics", "workers.readiness"]},
    {"samples": ["workers.samples"], "models": ["workers.models"]},
    {"serving": ["workers.serving"]},
    {"training": ["workers.training", "workers.exporting"]},
    {
        "command line": [
            "workers", "workers.answering", "workers.cli", "workers.inspect", "workers.model_cli", "workers.planning",
            "workers.slots", "workers.text",
        ]
    },
]  # fmt: skip

STRANGERS = [("client", "shard"), ("client", "server")]  # they meet on the wire only

# Library: the only modules that may import it.
LIBRARIES = {
    "numba": ["ps.storage.kernels"],
    "llvmlite": ["ps.storage.kernels"],
    "grpc": [
        "ps.grpc_shell",
        "ps.replica_service",
        "ps.rows_client",
        "ps.server",
        "ps.transport",
        "workers.serving",
    ],
    "ray": [
        "ps.actor",
        "ps.ray_actors",
        "ps.ray_directory",
        "ps.ray_resharding",
        "ps.session",
        "workers.serving.on_ray",
        "workers.training.group",
    ],
    "torch": ["workers.models", "workers.training", "workers.exporting"],
    "onnx": ["workers.exporting"],
    "onnxruntime": ["workers.exporting", "workers.serving"],
}

NEVER_IMPORTED = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}  # they run code from files
NEVER_CALLED = {"torch.load", "torch.save"}  # pickle by another name
NEVER_NAMED = {"base", "common", "core", "helper", "helpers", "manager", "misc", "tools", "util", "utils"}
MAX_LINES = 400

TARGETS = {"demo", "test", "test-slow", "chaos", "check", "bench", "proto"}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_name(path): path
    for package in ("ps", "workers")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "__pycache__" not in path.parts
}
WRITTEN = {name: path for name, path in FILES.items() if "_pb2" not in name}  # not generated
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports_of(name, nodes):
    """Dotted names of the modules that these nodes import; own packages as modules, not as names inside them."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: a relative import; write the full name"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in FILES else node.module for full in inside}
    return found - {name}


IMPORTS = {name: imports_of(name, ast.walk(tree)) for name, tree in TREES.items()}


def within(name, module):
    return name == module or name.startswith(module + ".")


def place_of(name):
    """(level, room) of a module."""
    places = [
        (len(module), level, room)
        for level, rooms in enumerate(LEVELS)
        for room, modules in rooms.items()
        for module in modules
        # A package's own name stands for its __init__ alone where its modules are listed one by one.
        if name == module or (within(name, module) and module not in {"ps", "workers"})
    ]
    assert places, f"{name} has no room: give it one in docs/architecture.md and in LEVELS here"
    return max(places)[1:]


def test_imports_run_one_way():
    wrong = []
    for name in FILES:
        level, room = place_of(name)
        for imported in sorted(IMPORTS[name] & set(FILES)):
            other_level, other_room = place_of(imported)
            if (other_level >= level and other_room != room) or (room, other_room) in STRANGERS:
                wrong.append(f"{name} ({room}) imports {imported} ({other_room})")
    assert not wrong


def test_ps_knows_nothing_of_workers():
    assert not [name for name in FILES if within(name, "ps") and any(within(i, "workers") for i in IMPORTS[name])]


def test_no_modules_import_each_other_in_a_circle():
    order = graphlib.TopologicalSorter({name: imports_of(name, tree.body) & set(FILES) for name, tree in TREES.items()})
    assert len(list(order.static_order())) == len(FILES)  # raises CycleError, which names the circle


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_in_their_rooms(library):
    users = {name for name in FILES if any(within(imported, library) for imported in IMPORTS[name])}
    strays = {name for name in users if not any(within(name, room) for room in LIBRARIES[library])}
    assert not strays, f"{library} is imported by {sorted(strays)}; only {LIBRARIES[library]} may"


def test_nothing_is_pickled():
    importers = [name for name in FILES if {i.partition(".")[0] for i in IMPORTS[name]} & NEVER_IMPORTED]
    callers = [
        f"{name} line {node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (ast.unparse(node.func) in NEVER_CALLED or "allow_pickle" in {keyword.arg for keyword in node.keywords})
    ]
    assert importers + callers == []


def test_files_are_named_for_an_idea():
    assert not [name for name in FILES if set(name.split(".")) & NEVER_NAMED]


def test_every_file_says_what_it_is():
    assert not [name for name in WRITTEN if TREES[name].body and not ast.get_docstring(TREES[name])]


def test_files_stay_short():
    lengths = {name: len(path.read_text().splitlines()) for name, path in WRITTEN.items()}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}, "look for the second idea"


def test_ps_alone_is_light():
    """`weir-ps` without extras: ps loads where torch, ray and pyarrow are not installed."""
    check = "import ps, sys; print(*sorted({'torch', 'ray', 'pyarrow', 'workers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, capture_output=True).stdout == b"\n"


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "proto").glob("*.proto")))
def test_the_wire_contract_and_the_generated_code_agree(name):
    generated = (ROOT / f"ps/wire/{name}_pb2.pyi").read_text()
    contract = (ROOT / f"proto/{name}.proto").read_text()
    messages = set(re.findall(r"^message (\w+)", contract, re.MULTILINE))
    assert messages == set(re.findall(r"^class (\w+)\(_message", generated, re.MULTILINE)), "run `make proto`"
    fields = set(re.findall(r"^ +(?:repeated )?[\w.]+ (\w+) = \d+;", contract, re.MULTILINE))
    assert fields <= set(re.findall(r"(\w+)_FIELD_NUMBER", generated.lower().replace("_field_number", "_FIELD_NUMBER")))


def test_make_has_what_the_readme_says():
    rules = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    assert targets >= TARGETS
    named = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named <= targets, f"README names {sorted(named - targets)}, which the Makefile does not have"
    assert {"demo", "test"} <= named


def test_torch_is_pinned_once():
    assert re.search(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert not re.search(r"torch==", (ROOT / "pyproject.toml").read_text())


def test_kernels_make_no_arrays():
    """They are compiled without reference counts, so one that they make would never be freed."""
    makers = re.compile(r"np\.(empty|zeros|ones|full|arange|array|concatenate|copy)\(")
    kernels = {name: path.read_text() for name, path in WRITTEN.items() if name.startswith("ps.storage.kernels")}
    exempt = {"ps.storage.kernels.row_functions", "ps.storage.kernels.generate"}  # no kernels themselves
    assert len(kernels) > 20
    assert not {name for name, text in kernels.items() if makers.search(text)} - exempt
