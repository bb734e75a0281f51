"""Files to batches: every format gives the same samples, and every mistake names its file and line."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workers.samples.making import assert_same, bag, config, key, write
from workers.samples.batch import Batch
from workers.samples.dataset import Dataset
from workers.samples.delimited import DelimitedSource
from workers.samples.errors import DataError
from workers.samples.libsvm import LibsvmSource
from workers.samples.open import open_dataset, open_splits
from workers.samples.parquet import ParquetSource
from workers.samples.rows import join
from workers.samples.schema import Schema

FIELDS: dict[str, Any] = {
    "user": "categorical",
    "tags": {"type": "multi", "max_length": 2},
    "price": {"type": "numeric", "transform": "log"},
}
ROWS = [("1", "u1", "a|b|c", "1.5"), ("0", "", "", ""), ("1", "ü, 3", "d", "-2")]


def samples(root: Path, data: dict[str, Any], fields: dict[str, Any] = FIELDS, **parts: Any) -> Batch:
    """All samples of the split train."""
    settings = config({"root": str(root)} | data, fields, **parts)
    return join(list(open_dataset(settings, "train").batches(drop_last=False)))


def message(root: Path, data: dict[str, Any], fields: dict[str, Any] = FIELDS, **parts: Any) -> str:
    with pytest.raises(DataError) as caught:
        samples(root, {"shuffle": "none"} | data, fields, **parts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_rows(batch: Batch) -> None:
    assert batch.labels[:, 0].tolist() == [1, 0, 1]
    np.testing.assert_array_equal(batch.dense[:, 0], np.array([np.log(2.5), 0, -np.log(3)], np.float32))
    assert [bag(batch, i, "user") for i in range(3)] == [[key(0, text)] for text in ("u1", "", "ü, 3")]
    assert [bag(batch, i, "tags") for i in range(3)] == [[key(1, "a"), key(1, "b")], [], [key(1, "d")]]


def quoted(row: tuple[str, ...]) -> str:
    return ",".join(f'"{value}"' if "," in value else value for value in row)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shuffle", ["none", 3])
def test_csv_and_tsv_with_and_without_header(tmp_path: Path, suffix: str, shuffle: str | int) -> None:
    header = ("click", "user", "tags", "price")
    write(tmp_path / f"h.csv{suffix}", "\n".join(quoted(row) for row in [header, *ROWS]) + "\n")
    write(tmp_path / f"n.csv{suffix}", "\n".join(quoted(row) for row in ROWS))
    write(tmp_path / f"h.tsv{suffix}", "\r\n".join("\t".join(row) for row in [header, *ROWS]) + "\r\n\r\n")
    data = {"shuffle": shuffle, "batch_size": 3}
    found = [
        samples(tmp_path, data | {"train": f"h.csv{suffix}"}),
        samples(tmp_path, data | {"train": f"n.csv{suffix}", "header": False, "columns": list(header)}),
        samples(tmp_path, data | {"train": f"h.tsv{suffix}", "format": "tsv"}),
    ]
    for other in found[1:]:
        assert_same(found[0], other)
    if shuffle == "none":
        check_rows(found[0])


def test_several_files_and_globs_keep_their_order(tmp_path: Path) -> None:
    for name, row in zip(("a2.csv", "a1.csv", "b.csv"), ROWS, strict=True):
        write(tmp_path / name, "click,user,tags,price\n" + quoted(row))
    check_rows(samples(tmp_path, {"shuffle": "none", "train": ["a2.csv", "a1.csv", "b.csv"]}))
    sorted_by_name = samples(tmp_path, {"shuffle": "none", "train": ["a*.csv", "b.csv"]})
    assert sorted_by_name.labels[:, 0].tolist() == [0, 1, 1]


def test_parquet_with_lists_and_nulls(tmp_path: Path) -> None:
    table = pa.table(
        {
            "click": pa.array([True, False, True]),
            "user": pa.array(["u1", None, "ü, 3"]).dictionary_encode(),
            "tags": [["a", "b", "c"], None, ["d"]],
            "price": [1.5, None, -2],
        }
    )
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=2)
    check_rows(samples(tmp_path, {"shuffle": "none", "format": "parquet", "train": "f.parquet"}))


@pytest.mark.parametrize("chunk_bytes", [64, 200, 1 << 20])
def test_the_size_of_blocks_does_not_matter(tmp_path: Path, chunk_bytes: int) -> None:
    rows = [(str(i % 2), f"u{i}", "|".join("abc"[: i % 4]), str(i)) for i in range(50)]
    path = write(tmp_path / "f.csv", "click,user,tags,price\n" + "\n".join(quoted(row) for row in rows))
    schema = Schema(config({"train": "f.csv"}, FIELDS))
    source = DelimitedSource((path, path), schema.places, chunk_bytes=chunk_bytes)
    assert source.known_rows is None
    assert source.count_rows() == source.known_rows == 100
    batches = list(Dataset(source, schema, batch_size=7).batches())
    assert [len(batch.labels) for batch in batches] == [7] * 14 + [2]
    price = np.concatenate([batch.dense[:, 0] for batch in batches])
    np.testing.assert_array_equal(price, np.log1p(np.tile(np.arange(50), 2)).astype(np.float32))


def test_parquet_workers_read_only_their_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"click": [0] * 80, "user": list(range(80))})
    path = tmp_path / "f.parquet"
    pq.write_table(table, path, row_group_size=10)
    schema = Schema(config({"train": "f"}, {"user": "categorical"}))
    read: list[int] = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda file, i, **options: (read.append(i), original(file, i, **options))[1]
    )
    for rank in range(2):
        split = Dataset(ParquetSource((path,), schema.places), schema, batch_size=5, shuffle=20)
        assert sum(batch.size for batch in split.batches(0, rank, 2)) == 40
    assert read == [0, 1, 4, 5, 2, 3, 6, 7]


def test_libsvm_columns(tmp_path: Path) -> None:
    text = "1 1:1 7:1 9:1.0 20:-0.5 # a remark\n\n0 qid:3 2:1 8:0 30:4\n1 qid:4 3:1  7:1 8:1\n"
    write(tmp_path / "f.svm.gz", text)
    fields = {
        "user": {"type": "categorical", "column": "1-4"},
        "tags": {"type": "multi", "column": "7-9"},
        "price": {"type": "numeric", "column": "20"},
        "code": {"type": "categorical", "column": "30"},
    }
    data = {"shuffle": "none", "format": "libsvm", "train": "f.svm.gz"}
    batch = samples(tmp_path, data, fields, labels={"label": "binary"}, group="qid")
    assert batch.labels[:, 0].tolist() == [1, 0, 1]
    np.testing.assert_array_equal(batch.dense[:, 0], np.array([-0.5, 0, 0], np.float32))
    assert [bag(batch, i, "user") for i in range(3)] == [[key(0, "1")], [key(0, "2")], [key(0, "3")]]
    assert [bag(batch, i, "tags") for i in range(3)] == [
        [key(1, "7"), key(1, "9")],
        [],
        [key(1, "7"), key(1, "8")],
    ]
    assert [bag(batch, i, "code") for i in range(3)] == [[key(2, "")], [key(2, "4")], [key(2, "")]]
    assert batch.groups is not None
    assert len(set(batch.groups.tolist())) == 3


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("1 3:1 abc", {"column": "3"}, "f.svm:4: 'abc' is not of the form index:value"),
        ("1 3:", {"column": "3"}, "f.svm:4: '3:' is not of the form index:value"),
        ("1 3:1 3:2", {"column": "3"}, "f.svm:4: the index 3 comes more than once"),
        ("1 3:1 4:1", {"column": "3-"}, "f.svm:4: several indices of 3-"),
        ("1 3:0.5", {"column": "3-9"}, "f.svm:4: index 3 has the value '0.5'; in a range of one-hot indices"),
        ("x 3:1", {"column": "3"}, "f.svm:4: column 'label': 'x' is not a number"),
        ("1 3:1", {"column": "user"}, "fields.user: libsvm data has no column 'user'; allowed: label, qid"),
    ],
)
def test_libsvm_mistakes(tmp_path: Path, line: str, field: dict[str, str], expected: str) -> None:
    write(tmp_path / "f.svm", f"0 3:1\n\n0 3:1\n{line}\n")
    data = {"format": "libsvm", "train": "f.svm"}
    fields = {"user": {"type": "categorical"} | field}
    assert expected in message(tmp_path, data, fields, labels={"label": "binary"})


def test_libsvm_shares_count_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "f.svm", "\n\n".join(f"{i % 2} 1:{i}" for i in range(30)))
    schema = Schema(config({"train": "f"}, {"a": {"type": "numeric", "column": "1"}}, labels={"label": "binary"}))
    split = Dataset(LibsvmSource((path,), schema.places, set(), chunk_bytes=40), schema, batch_size=4)
    own = [[batch.dense[:, 0].tolist() for batch in split.batches(0, rank, 2)] for rank in range(2)]
    assert own[0] == [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19], [24, 25, 26]]
    assert own[1] == [[4, 5, 6, 7], [12, 13, 14, 15], [20, 21, 22, 23], [27, 28, 29]]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("header", [True, False])
def test_lines_are_exact(tmp_path: Path, suffix: str, header: bool) -> None:
    """With blank lines, with packed files, in the last of several blocks."""
    lines = ["click,user,tags,price"] if header else []
    lines += ["0,u,a,1", ""] * 1000 + ["0,u,a,1", "0,u,a,oops", "0,u,a,1"]
    path = write(tmp_path / f"f.csv{suffix}", "\n".join(lines))
    names = () if header else ("click", "user", "tags", "price")
    schema = Schema(config({"train": "f"}, FIELDS))
    split = Dataset(DelimitedSource((path,), schema.places, names=names, chunk_bytes=500), schema, batch_size=64)
    with pytest.raises(DataError) as caught:
        list(split.batches())
    assert str(caught.value) == f"{path}:{lines.index('0,u,a,oops') + 1}: column 'price': 'oops' is not a number"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f.csv: empty file"),
        ("\n\n", "f.csv: empty file"),
        ("click,user,tags,price\n", "f.csv: empty: a header and no rows"),
        ("click,usr,tags,price\n0,a,b,1\n", "f.csv: no column 'user' (from fields.user); did you mean 'usr'?"),
        ("click,user,tags,price\n0,a,b,1\n0,a,b\n", "f.csv:3: 3 values, expected 4"),
        ("click,user,tags,price\n0,a,b,1\n\n0,a,b,1,9\n", "f.csv:4: 5 values, expected 4"),
        ("click,user,tags,price\n0,a,b,inf\n", "f.csv:2: column 'price': 'inf' is not a finite number"),
        ("click,user,tags,price\n2,a,b,1\n", "f.csv:2: column 'click': '2' is no label of type binary"),
        ("click,user,user,tags,price\n0,a,a,b,1\n", "f.csv: the column 'user' (from fields.user) comes more than once"),
    ],
)
def test_mistakes_in_csv(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path / "f.csv", text)
    assert expected in message(tmp_path, {"train": "f.csv"})


def test_the_columns_that_are_there_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "f.csv", "click,usr,tags,price\n0,a,b,1\n")
    assert message(tmp_path, {"train": "f.csv"}).endswith(
        "no column 'user' (from fields.user); did you mean 'usr'? The file has: click, usr, tags, price"
    )


def test_missing_files_name_the_node(tmp_path: Path) -> None:
    assert message(tmp_path, {"train": "absent.csv"}).startswith(
        f"{tmp_path}/absent.csv: no such file on node {socket.gethostname()}"
    )
    assert f"no file matches on node {socket.gethostname()}" in message(tmp_path, {"train": "*.csv"})


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "f.csv.gz").write_bytes(b"no gzip at all")
    assert "f.csv.gz: cannot be read" in message(tmp_path, {"train": "f.csv.gz"})
    whole = write(tmp_path / "t.csv.gz", "click,user,tags,price\n" + "0,a,b,1\n" * 9999).read_bytes()
    (tmp_path / "t.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert "t.csv.gz: cannot be read" in message(tmp_path, {"train": "t.csv.gz"})
    (tmp_path / "f.parquet").write_bytes(b"no parquet at all")
    assert "f.parquet: cannot be read as Parquet" in message(tmp_path, {"train": "f.parquet", "format": "parquet"})
    (tmp_path / "l.csv").write_bytes(b"click,user,tags,price\n0,\xff\xfe,b,1\n")
    assert "l.csv: cannot be read" in message(tmp_path, {"train": "l.csv"})


def test_mistakes_in_parquet(tmp_path: Path) -> None:
    data = {"train": "f.parquet", "format": "parquet"}
    columns = {"click": [0, 0, 5], "user": ["a"] * 3, "tags": [[""]] * 3, "price": [1.0] * 3}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet", row_group_size=2)
    assert "f.parquet: row 3: column 'click': 5 is no label of type binary" in message(tmp_path, data)
    del columns["price"]
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    assert "no column 'price' (from fields.price)" in message(tmp_path, data)
    pq.write_table(pa.table(columns | {"price": columns["click"]}).slice(0, 0), tmp_path / "f.parquet")
    assert "f.parquet: empty: no rows" in message(tmp_path, data)


def test_splits_of_a_configuration(tmp_path: Path) -> None:
    text = "click,user,tags,price\n" + "".join(f"{i % 2},u{i},a,{i}\n" for i in range(10))
    write(tmp_path / "f.csv", text)
    settings = config(
        {"root": str(tmp_path), "train": "f.csv", "test": "f.csv", "batch_size": 4, "drop_last": True}, FIELDS
    )
    splits = open_splits(settings)
    assert list(splits) == ["train", "test"]
    assert [batch.size for batch in splits["train"].batches()] == [4, 4]
    assert [batch.size for batch in splits["test"].batches()] == [4, 4, 2]
    with pytest.raises(DataError, match=r"data\.valid: missing"):
        open_dataset(settings, "valid")
