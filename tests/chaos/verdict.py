"""What must stand in the rows, from the ledgers; and what stands there."""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np

import ps
from tests.chaos.workload import NUM_ADMITTED, NUM_COUNTS, NUM_WIDE, SHARED, THRESHOLD, keys_of, step_of

TABLES = ("counts", "ones", "admitted", "aged")  # in which a row is there if and only if its value is not 0
WIDE_TABLES = ("scaled", "added")  # whose rows are there from the start
_ID = np.uint64((1 << 52) - 1)


class Expected:
    """By table and key: how often the row was counted at least and at most."""

    def __init__(self):
        self._shared = {"counts": np.zeros((NUM_COUNTS, 2), int), "admitted": np.zeros((NUM_ADMITTED, 2), int)}
        self._own = {"ones": {}, "aged": {}}  # {key: [least, most]}
        self.exponent, self.addend = [0, 0], [0, 0]
        self.num_acknowledged = self.num_unknown = 0

    def add(self, client, ledger):
        """All that a client did."""
        # An update with unknown outcome may happen late, so what came behind it tells less.
        maybe_added, maybe_removed = set(), set()  # (table, key)
        for number in ledger.numbers:
            step, is_sure = step_of(client, number), number in ledger.acknowledged
            self.num_acknowledged += is_sure
            self.num_unknown += not is_sure
            for table, keys in step.adds.items():
                if table in self._shared:
                    self._shared[table][keys & _ID] += (is_sure, 1)
                    continue
                for key in keys.tolist():
                    known = self._own[table].setdefault(key, [0, 0])
                    known[0] += is_sure and (table, key) not in maybe_removed
                    known[1] += 1
                    if not is_sure:
                        maybe_added.add((table, key))
            for table, keys in step.removes.items():
                for key in keys.tolist():
                    known = self._own[table].setdefault(key, [0, 0])
                    is_exact = is_sure and (table, key) not in maybe_added
                    known[:] = [0, 0] if is_exact else [0, known[1]]
                    if not is_sure:
                        maybe_removed.add((table, key))
            for bounds, change in zip((self.exponent, self.addend), step.grown, strict=True):
                bounds[0] += change if is_sure else min(0, change)
                bounds[1] += change if is_sure else max(0, change)
        return self

    def keys(self, table):
        """uint64 [n]: all that anybody named."""
        if table in self._shared:
            return keys_of(SHARED, np.arange(len(self._shared[table])))
        return np.array(sorted(self._own[table]), np.uint64)

    def bounds(self, table):
        """int64 [n, 2]: least and most, of `keys`."""
        if table == "admitted":
            return np.maximum(self._shared[table] - (THRESHOLD - 1), 0)
        if table in self._shared:
            return self._shared[table]
        return np.array([self._own[table][key] for key in sorted(self._own[table])], int).reshape(-1, 2)


@dataclass
class Verdict:
    """Counts of single additions: acknowledged and not there, there more often than sent. extra: rows that nobody made,
    or that should be gone. wrong: what clients read that cannot be. errors: what they were told of failed updates,
    numbers aside: how often.
    """

    acknowledged: int = 0
    unknown: int = 0
    lost: int = 0
    doubled: int = 0
    extra: int = 0
    wrong: int = 0
    checked_rows: int = 0
    remarks: list = field(default_factory=list)
    errors: dict = field(default_factory=dict)

    @property
    def is_good(self):
        return not (self.lost or self.doubled or self.extra or self.wrong)

    def as_dict(self):
        return asdict(self)


def judge(expected, found, ledgers):
    """found: what `read_all` gave."""
    wrong = [line for ledger in ledgers for line in ledger.wrong]
    wrong += [text for ledger in ledgers for text in ledger.errors if "lost its rows" in text]  # none ever does
    verdict = Verdict(expected.num_acknowledged, expected.num_unknown, wrong=len(wrong), remarks=wrong[:20])
    errors = Counter(re.sub(r"\d+", "N", text) for ledger in ledgers for text in ledger.errors)
    verdict.errors = dict(errors.most_common(10))
    for table in TABLES:
        values, num_rows = found[table]
        _compare(verdict, table, expected.keys(table), values, expected.bounds(table))
        verdict.extra += abs(num_rows - int((values != 0).sum()))
    keys, ones = _wide(), np.ones((NUM_WIDE, 1), int)
    _compare(verdict, "scaled (exponent)", keys, np.log2(found["scaled"][0]), ones * expected.exponent)
    _compare(verdict, "added", keys, found["added"][0], ones * expected.addend)
    verdict.extra += sum(abs(found[table][1] - NUM_WIDE) for table in WIDE_TABLES)
    return verdict


def read_all(client, expected):
    """By table: (float32 [n], the values of all keys that anybody named; the number of rows)."""
    keys = {table: expected.keys(table) for table in TABLES} | dict.fromkeys(WIDE_TABLES, _wide())
    return {
        table: (client.pull(table, named)[:, 0] if len(named) else np.empty(0), client.get(table, ps.Size()))
        for table, named in keys.items()
    }


def same_bits(before, after):
    """The tables that differ between two `read_all`."""
    return [
        table
        for table, (values, num_rows) in before.items()
        if values.tobytes() != after[table][0].tobytes() or num_rows != after[table][1]
    ]


def _wide():
    return keys_of(SHARED, np.arange(NUM_WIDE))


def _compare(verdict, table, keys, values, bounds):
    verdict.checked_rows += len(keys)
    missing, surplus = np.maximum(bounds[:, 0] - values, 0), np.maximum(values - bounds[:, 1], 0)
    broken = values != np.floor(values)
    verdict.lost += int(np.ceil(missing).sum())
    verdict.doubled += int(np.ceil(surplus).sum())
    verdict.wrong += int(broken.sum())
    for place in np.flatnonzero((missing > 0) | (surplus > 0) | broken)[:5].tolist():
        low, high = bounds[place].tolist()
        verdict.remarks.append(f"{table}: key {int(keys[place]):#x} is {values[place]:g}, expected {low} to {high}")
