"""What the options of `weir plan` mean, and what is said of a mistake."""

import pytest

from ps.errors import RequestError
from tests.workers.planning.fixed import RECIPE
from workers.config import Config
from workers.planning.demand import Demand, Nodes, read_count, read_options

CONFIG = Config.model_validate(RECIPE)
ONE_TABLE = Config.model_validate(
    {**RECIPE, "tables": {"main": RECIPE["tables"]["people"]}, "fields": {"user": "categorical"}}
)
ROWS = ["people=1e9", "things=10^6"]


def read(config=CONFIG, *, rows=(), params=(), **options):
    return read_options(config, rows=rows, params=params, options={"requests": "1e6", **options})


def test_defaults():
    demand, nodes = read(rows=ROWS)
    expected = {"rows": {"people": 1e9, "things": 1e6}, "requests": 1e6, "updates": 1e6, "keys_per_request": 3}
    assert demand == Demand.model_validate({**expected, "requests_per_call": 1, "updates_per_call": 100})
    assert nodes == Nodes()


def test_parameters_are_rows_times_width():
    assert read(ONE_TABLE, params=["8e9"])[0].rows == {"main": 1e9}
    assert read(params=["people=800", "things=16"])[0].rows == {"people": 100, "things": 2}


def test_everything_may_be_given():
    demand, nodes = read(
        rows=ROWS, updates="0", keys_per_request="2.5", requests_per_call="7", updates_per_call="8", node_memory="1TiB",
        node_cores="64", node_network="25", load="0.25", fill="1", replicas="2",
    )  # fmt: skip
    assert (demand.updates, demand.keys_per_request, demand.requests_per_call, demand.updates_per_call) == (
        0,
        2.5,
        7,
        8,
    )
    assert (nodes.node_memory, nodes.node_cores, nodes.network_bytes_per_second) == (1 << 40, 64, 25e9 / 8)
    assert (nodes.load, nodes.fill, nodes.replicas) == (0.25, 1, 2)


@pytest.mark.parametrize(
    ("text", "count"), [("1000", 1000), ("1_000", 1000), ("1e12", 1e12), ("10^12", 1e12), ("2^10", 1024)]
)
def test_counts(text, count):
    assert read_count(text) == count


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give either --rows N or --params N"),
        ({"rows": ROWS, "params": ROWS}, "give either --rows N or --params N"),
        ({"rows": ["5"]}, "--rows 5: the recipe has tables people, things; give TABLE=N for each"),
        ({"rows": ["peple=5"]}, "--rows peple=5: unknown table 'peple'; did you mean 'people'?"),
        ({"rows": ["people=5"]}, "--rows: nothing is said of table 'things'; give things=N"),
        ({"rows": ["people=5", "things=many"]}, "--rows: must be a number as 1000000, 1e6 or 10^6, found 'many'"),
        ({"params": ["people=5", "things=many"]}, "--params: must be a number as 1000000, 1e6 or 10^6, found 'many'"),
        ({"rows": ["people=0", "things=1"]}, "--rows: must be greater than or equal to 1, found '0'"),
        ({"rows": ROWS, "requests": "1e"}, "--requests: must be a number as 1000000, 1e6 or 10^6, found '1e'"),
        ({"rows": ROWS, "requests": "nan"}, "--requests: must be greater than or equal to 0, found 'nan'"),
        ({"rows": ROWS, "node_memory": "8 gigs"}, "--node-memory: must be a number of bytes or a size as 8GiB"),
        ({"rows": ROWS, "load": "2"}, "--load: must be less than or equal to 1, found '2'"),
        ({"rows": ROWS, "node_cores": "many"}, "--node-cores: must be a valid integer"),
    ],
)
def test_mistakes_name_the_option(options, said):
    with pytest.raises(RequestError) as caught:
        read(**options)
    assert str(caught.value).startswith(said)
