"""Reading a configuration: what is accepted, and that every mistake is one line that names its place."""

from pathlib import Path

import pytest

from ps.errors import RequestError
from ps.spec import AdaGrad, Adam, ClusterSpec
from workers.config import Categorical, Config, ConfigError, Multi, Numeric, load_config

SMALL = """\
name: small
data:
  train: train.csv
  valid: [valid.csv]
labels:
  click: binary
fields:
  user: categorical
  item: {type: categorical, column: item_id}
  tags: {type: multi, separator: ";", max_length: 3}
  price: {type: numeric, transform: log}
  age: {type: numeric, transform: buckets, boundaries: [18, 30]}
tables:
  main:
    segments:
      linear: {dim: 1, optimizer: adagrad}
      embedding: {dim: 4, optimizer: {name: adam, learning_rate: 1e-3, sweep: true}}
model: deepfm
train:
  epochs: 2
  early_stopping: {metric: logloss}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def with_line(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert isinstance(caught.value, RequestError)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_shorthands_and_defaults(path: Path) -> None:
    config = load_config(path)
    assert config.fields["user"] == Categorical()
    assert config.column_of("user") == "user"
    assert config.column_of("item") == "item_id"
    assert config.data.train == ("train.csv",)
    assert config.model == {"name": "deepfm"}
    segments = config.tables["main"].segments
    assert segments["linear"].optimizer == AdaGrad()
    assert segments["embedding"].optimizer == Adam(learning_rate=1e-3, sweep=True)
    assert config.train.early_stopping is not None
    assert config.train.early_stopping.mode == "min"
    assert config.table_of("tags") == "main"


def test_slots_go_by_order_and_dense_fields_have_none(path: Path) -> None:
    assert load_config(path).slots() == {"user": 0, "item": 1, "tags": 2, "age": 3}


def test_given_slots_are_kept_and_others_fill_the_gaps(path: Path) -> None:
    with_line(path, "column: item_id}", "column: item_id, slot: 0}")
    assert load_config(path).slots() == {"user": 1, "item": 0, "tags": 2, "age": 3}


def test_cluster_spec(path: Path) -> None:
    spec = load_config(path, ["seed=7", "cluster.shards=5"]).cluster_spec()
    assert isinstance(spec, ClusterSpec)
    assert spec.seed == 7
    assert spec.num_buckets == 512  # 64 for each of five shards, a power of two
    assert list(spec.tables["main"].columns()) == ["linear", "embedding"]
    assert load_config(path).cluster_spec().num_buckets == 256


def test_frozen(path: Path) -> None:
    config = load_config(path)
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"


def test_overrides_are_yaml(path: Path) -> None:
    config = load_config(path, ["data.root=/x=y", "data.shuffle=1000", "train.learning_rate=1e-2", "data.test=[a, b]"])
    assert (config.data.root, config.data.shuffle, config.train.learning_rate) == ("/x=y", 1000, 0.01)
    assert config.data.test == ("a", "b")


def test_later_overrides_win_and_may_make_a_part(path: Path) -> None:
    config = load_config(path, ["checkpoint.keep=3", "checkpoint.keep=5", "train.plateau.factor=0.5"])
    assert config.checkpoint.keep == 5
    assert config.train.plateau is not None
    assert config.train.plateau.factor == 0.5


def test_only_true_and_false_are_booleans(path: Path) -> None:
    with_line(path, "model: deepfm", "model: {name: deepfm, country: no, ratio: 1e-4, port: 010, time: 12:30}")
    assert load_config(path).model == {"name": "deepfm", "country": "no", "ratio": 1e-4, "port": 10, "time": "12:30"}


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("  epochs: 2", "  epochz: 2", 20, "train.epochz: unknown key; did you mean 'epochs'?"),
        ("  train: train.csv", "  train: a\n  zzz: 1", 4, "data.zzz: unknown key; allowed: root, format, "),
        ("  epochs: 2", "  epochs: 0", 20, "train.epochs: must be greater than or equal to 1, found 0"),
        ("  epochs: 2", "  epochs: many", 20, "train.epochs: must be a valid integer"),
        ("{dim: 4,", "{dims: 4,", 17, "tables.main.segments.embedding.dims: unknown key; did you mean 'dim'?"),
        (
            "adam, learning_rate",
            "adam, learning_rat",
            17,
            "optimizer.learning_rat: unknown key; did you mean 'learning_rate'?",
        ),
        ("optimizer: adagrad", "optimizer: adagard", 16, "optimizer: unknown name 'adagard'; did you mean 'adagrad'?"),
        (
            "user: categorical",
            "user: categoric",
            8,
            "fields.user: unknown type 'categoric'; did you mean 'categorical'?",
        ),
        ("click: binary", "click: binry", 6, "did you mean 'binary'?"),
        (
            "metric: logloss",
            "metric: aucc",
            21,
            "train.early_stopping.metric: unknown metric 'aucc'; did you mean 'auc'?",
        ),
        ("column: item_id}", "slot: 4096}", 9, "fields.item.slot: must be less than or equal to 4095, found 4096"),
        (
            "boundaries: [18, 30]",
            "boundaries: [30, 18]",
            12,
            "boundaries must be one or more growing numbers, found [30.0, 18.0]",
        ),
        (
            "transform: log}",
            "transform: log, slot: 3}",
            11,
            "'slot' is only for transform: buckets, found transform: log",
        ),
        ("name: small", "name: a/b", 1, "name: String should match pattern"),
        (
            "  train: train.csv",
            "  train: a\n  shuffle: maybe",
            4,
            "data.shuffle: must be full, none or a number of rows, found 'maybe'",
        ),
        ("  train: train.csv", "  train: a\n  header: false", 2, "data: header: false needs 'columns'"),
        ("  train: train.csv", "  format: csv", 2, "data: 'train' is missing"),
    ],
)
def test_mistakes(path: Path, old: str, new: str, line: int, expected: str) -> None:
    text = message(with_line(path, old, new))
    assert text.startswith(f"{path}:{line}: ")
    assert expected in text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: small\n", "", "name: missing"),
        (
            "column: item_id}",
            "slot: 2}\n  city: {type: categorical, slot: 2}",
            "fields.city.slot: slot 2 is already that of field 'item'",
        ),
        ("column: item_id}", "table: mian}", "fields.item.table: unknown table 'mian'; did you mean 'main'?"),
        (
            "tables:\n",
            "tables:\n  spare: {segments: {a: {dim: 1}}}\n",
            "fields.user.table: missing; allowed: spare, main",
        ),
        ("metric: logloss", "metric: gauc", "gauc needs 'group'"),
        ("metric: logloss", "metric: auc.clik", "unknown label 'clik'; did you mean 'click'?"),
        ("  valid: [valid.csv]\n", "", "train.early_stopping: needs data.valid"),
        (
            "  train: train.csv\n  valid: [valid.csv]",
            "  format: generated\n",
            "fields.item: the data has no column 'item_id'",
        ),
    ],
)
def test_mistakes_between_parts(path: Path, old: str, new: str, expected: str) -> None:
    text = message(with_line(path, old, new))
    assert text.startswith(str(path))
    assert expected in text


def test_a_job_has_keys(path: Path) -> None:
    with_line(path, SMALL[SMALL.index("  user:") : SMALL.index("tables:")], "  price: numeric\n")
    assert "fields: all are dense numbers; at least one must make keys" in message(path)


def test_override_mistakes(path: Path) -> None:
    assert message(path, "train.epochs=-1") == (
        f"{path}: train.epochs (from --set): must be greater than or equal to 1, found -1"
    )
    assert "train.epoch (from --set): unknown key; did you mean 'epochs'?" in message(path, "train.epoch=1")
    assert message(path, "train") == "--set train: must be of the form a.b=value"
    assert "not YAML" in message(path, "train.epochs=[1")
    assert "tables.main.segments.linear.optimizer is 'adagrad', not a mapping" in message(
        path, "tables.main.segments.linear.optimizer.l2=0.1"
    )


def test_files_that_are_not_configurations(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "absent.yaml")
    for text, expected in [
        ("", "must be a mapping"),
        ("- a", "must be a mapping"),
        ("name: [a\nb: c", ":2:"),
        ("a: 1\nb: 2\na: 3", ":3: a: given twice, first in line 1"),
        ("a: {b: 1, b: 2}", ":1: a.b: given twice, first in line 1"),
        ("a: !!python/object:os.system x", "not YAML"),
    ]:
        file = tmp_path / "bad.yaml"
        file.write_text(text)
        assert expected in message(file)


def test_infinity_is_refused(path: Path) -> None:
    assert "finite" in message(path, "train.learning_rate=.inf")


def test_group_of_a_client_is_not_for_the_file(path: Path) -> None:
    assert "given by the job" in message(path, "cluster.client.group={rank: 0, world: 1}")


def test_num_buckets(path: Path) -> None:
    assert "power of two" in message(path, "cluster.num_buckets=100")
    assert "4 for 8 shards" in message(path, "cluster.num_buckets=4", "cluster.shards=8")


def test_field_types(path: Path) -> None:
    fields = load_config(path).fields
    assert isinstance(fields["tags"], Multi)
    assert isinstance(fields["age"], Numeric)
    assert not fields["age"].is_dense


RECIPES = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(recipe: Path) -> None:
    config = load_config(recipe)
    assert isinstance(config, Config)
    assert config.name == recipe.stem
    config.cluster_spec()


def test_a_mapping_that_cannot_be_read_names_its_place(path: Path) -> None:
    text = message(path, "checkpoint.mapping={main: {size: 3}}")
    assert "checkpoint.mapping" in text
    config = load_config(path, ["checkpoint.mapping={main.linear: old}"])
    assert config.checkpoint.mapping == {"main.linear": "old"}
