"""The datasets of a configuration."""

from __future__ import annotations

from workers.config import Config
from workers.config.data import Split
from workers.samples.chunk import Source
from workers.samples.dataset import Dataset
from workers.samples.delimited import DelimitedSource
from workers.samples.errors import DataError
from workers.samples.files import resolve
from workers.samples.generated import GeneratedSource
from workers.samples.libsvm import LibsvmSource
from workers.samples.parquet import ParquetSource
from workers.samples.schema import Schema


def open_dataset(config: Config, split: Split, schema: Schema | None = None) -> Dataset:
    """The batches of a split: train in the configured order, valid and test for evaluation. Raises DataError."""
    schema = schema or Schema(config)
    if split not in config.data.splits:
        raise DataError(f"data.{split}: missing; the configuration names no files of this split")
    return Dataset(
        _source(config, split, schema),
        schema,
        batch_size=config.data.batch_size,
        shuffle=config.data.shuffle if split == "train" else "none",
        seed=config.seed,
        drop_last=config.data.drop_last,
        held=config.data.shuffle == "full",
        evaluation=split != "train",
    )


def open_splits(config: Config) -> dict[str, Dataset]:
    """The datasets of all splits that the configuration has, by name."""
    schema = Schema(config)
    return {split: open_dataset(config, split, schema) for split in config.data.splits}


def _source(config: Config, split: Split, schema: Schema) -> Source:
    data = config.data
    if data.format == "generated":
        return GeneratedSource(data.log, split)
    paths = resolve(data.root, getattr(data, split))
    if data.format == "parquet":
        return ParquetSource(paths, schema.places)
    if data.format == "libsvm":
        return LibsvmSource(paths, schema.places, schema.multi_columns)
    return DelimitedSource(
        paths,
        schema.places,
        delimiter=data.delimiter or ("\t" if data.format == "tsv" else ","),
        names=data.columns,
        quote=data.format == "csv" if data.quote is None else data.quote,
    )
