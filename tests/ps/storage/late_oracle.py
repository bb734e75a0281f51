"""A table with late segments as a dict of rows, and the layouts that its tests share, since each costs seconds to
compile.
"""

import copy

from ps.spec import TableSpec
from tests.ps.storage.oracle import Oracle

NEVER = 1e9  # a score that no push of a test reaches: rows grow when the test says so
SPEC = TableSpec.model_validate(
    {
        "segments": {
            "embedding": {
                "dim": 3,
                "codec": "int8",
                "state_codec": "bf16",
                "late": NEVER,
                "optimizer": {"name": "adagrad", "initial_accumulator": 0.1},
                "initializer": {"name": "uniform", "scale": 0.5},
            },
            "linear": {
                "dim": 1,
                "optimizer": {"name": "ftrl", "l1": 0.01},
                "initializer": {"name": "normal", "std": 0.1},
            },
            "swept": {
                "dim": 1,
                "late": NEVER,
                "optimizer": {"name": "adam", "l2": 0.01, "sweep": True},
                "initializer": {"name": "constant", "value": 0.25},
            },
        }
    }
)


class LateOracle(Oracle):
    """Rows have all segments from the beginning, but those that are late stand still until the row is in `full`."""

    def __init__(self, name, spec, seed):
        super().__init__(name, spec, seed)
        self.full = set()

    def _present(self, key):
        """(segment, its columns, its place) of the segments that a row has."""
        places = zip(self.rows[key], self.spec.columns().values(), range(len(self.spec.segments)))
        return [each for each in places if key in self.full or each[0].spec.late is None]

    def push(self, keys, gradients, step, rates):
        created = 0
        for key, gradient in zip(map(int, keys), gradients):
            if key not in self.rows:
                self.rows[key] = self._row(key, rates)
                created += 1
            for segment, columns, place in self._present(key):
                segment.push(gradient[columns], rates[place], step)
        return created

    def promote(self, keys):
        grown = {int(key) for key in keys if int(key) in self.rows} - self.full
        self.full |= grown
        return len(grown)

    def sweep(self, step, rates):
        for key in self.rows:
            for segment, _, place in self._present(key):
                segment.sweep(rates[place], step)

    def write(self, keys, values, name, rates):
        """Values of a late segment."""
        for key in map(int, keys):
            if key not in self.rows:
                self.rows[key] = self._row(key, rates)
        self.promote(keys)
        self.overwrite(keys, values, name)

    def delete(self, keys):
        self.full -= {int(key) for key in keys}
        return super().delete(keys)

    def copied(self):
        return copy.deepcopy((self.rows, self.full))

    def put_back(self, keys, copied):
        """Rows as they were in a copy."""
        rows, full = copied
        for key in map(int, keys):
            self.rows[key] = copy.deepcopy(rows[key])
            self.full.discard(key)
        self.full |= full & {int(key) for key in keys}
