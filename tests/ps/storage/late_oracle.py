"""A table with late segments as a dict of rows, and the layouts that its tests share, since each costs seconds to
compile.
"""

import copy

import numpy as np

from ps.spec import TableSpec
from tests.ps.storage.oracle import Oracle, f32, power

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


DAY = 86_400


def late_at(score):
    """SPEC, whose rows grow at that score by themselves: half a point a show, two a click, halved each day."""
    segments = {
        name: segment if segment.late is None else segment.model_copy(update={"late": score})
        for name, segment in SPEC.segments.items()
    }
    weights = SPEC.score.model_copy(update={"show": 0.5, "click": 2.0, "decay": 0.5})
    return SPEC.model_copy(update={"segments": segments, "score": weights})


class LateOracle(Oracle):
    """Rows have all segments from the beginning, but those that are late stand still until the row is in `full`.

    seen: day of the last push, shows and clicks of each row.
    """

    def __init__(self, name, spec, seed):
        super().__init__(name, spec, seed)
        self.full, self.seen = set(), {}

    def _create(self, key, rates, day=0):
        self.rows[key], self.seen[key] = self._row(key, rates), (day, f32(0), f32(0))

    def _present(self, key):
        """(segment, its columns, its place) of the segments that a row has."""
        places = zip(self.rows[key], self.spec.columns().values(), range(len(self.spec.segments)))
        return [each for each in places if key in self.full or each[0].spec.late is None]

    def push(self, keys, gradients, step, rates, counts=None, now=0):
        created, counts = 0, np.tile(f32([1, 0]), (len(keys), 1)) if counts is None else counts
        for key, gradient, (shows, clicks) in zip(map(int, keys), gradients, counts):
            if key not in self.rows:
                self._create(key, rates, now // DAY)
                created += 1
            self._show(key, shows, clicks, now // DAY)
            for segment, columns, place in self._present(key):
                segment.push(gradient[columns], rates[place], step)
        return created

    def _show(self, key, shows, clicks, day):
        last, *before = self.seen[key]
        factor = f32(power(self.spec.score.decay, max(day - last, 0)))
        shows, clicks = shows + before[0] * factor, clicks + before[1] * factor
        self.seen[key] = (max(day, last), shows, clicks)
        score = self.spec.score.show * (float(shows) - float(clicks)) + self.spec.score.click * float(clicks)
        if score >= self.spec.late:
            self.full.add(key)

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
                self._create(key, rates)
        self.promote(keys)
        self.overwrite(keys, values, name)

    def delete(self, keys):
        self.full -= {int(key) for key in keys}
        return super().delete(keys)

    def copied(self):
        return copy.deepcopy((self.rows, self.full, self.seen))

    def put_back(self, keys, copied):
        """Rows as they were in a copy."""
        rows, full, seen = copied
        for key in map(int, keys):
            self.rows[key], self.seen[key] = copy.deepcopy(rows[key]), seen[key]
            self.full.discard(key)
        self.full |= full & {int(key) for key in keys}
