"""Who is ordered what: a table of what is seen, and a game of random failures against the orders."""

import numpy as np
import pytest

from ps.errors import JournalError
from ps.pairing import Issued, Order, Seen, next_order

NEW = Seen("undecided", address="a")


def primary(term, address="a", other="b", **fields):
    return Seen("primary", term, address, other, kept="primary", **fields)


def follower(role, term, address="b", **fields):
    return Seen(role, term, address, kept="standby" if role == "standby" else "filling", **fields)


def stored(kept, term, address="a", role="undecided", **fields):
    return Seen(role, term, address, kept=kept, **fields)


@pytest.mark.parametrize(
    ("seen", "issued", "order"),
    [
        # A new pair.
        ((None, None), 0, None),
        ((NEW, None), 0, None),
        ((NEW, NEW), 0, Order(0, "primary", 1, "a")),
        ((primary(1), NEW), 1, Order(1, "standby", 2, "a")),
        ((primary(1), follower("empty", 2)), 1, Order(0, "primary", 2, "b", has_standby=True)),
        ((primary(1), follower("filling", 2)), 2, None),  # the primary has the order, and has not said so yet
        ((primary(1), follower("standby", 2)), 2, None),
        ((primary(2, has_standby=True), follower("empty", 2)), 2, None),
        ((primary(2, has_standby=True), follower("filling", 2)), 2, None),
        ((primary(2, has_standby=True), follower("standby", 2)), 2, None),
        # The standby is gone, silent, broken, another one.
        ((primary(2, has_standby=True), None), 2, Order(0, "primary", 3, "b")),
        ((primary(3), None), 3, None),
        ((primary(2, has_standby=True), Seen("silent")), 2, None),
        ((primary(2, has_standby=True), follower("broken", 2)), 2, Order(1, "end")),
        ((primary(2, has_standby=True), follower("standby", 2, "c")), 2, Order(1, "standby", 3, "a")),
        ((primary(4), follower("standby", 2)), 4, Order(1, "standby", 5, "a")),
        ((primary(2), stored("", 0, "b", "damaged")), 2, Order(1, "standby", 3, "a")),
        # The primary is gone.
        ((None, follower("standby", 2)), 2, Order(1, "primary", 3)),
        ((stored("primary", 2), follower("standby", 2)), 2, Order(1, "primary", 3, "a")),
        ((Seen("silent"), follower("standby", 2)), 2, None),
        ((None, follower("filling", 2)), 2, None),
        ((stored("primary", 2), follower("filling", 2)), 2, Order(0, "primary", 3, "b")),
        # A standby that was removed before has not all.
        ((None, follower("standby", 2)), 3, None),
        ((stored("primary", 3), follower("standby", 2)), 3, Order(0, "primary", 4, "b")),
        ((stored("primary", 3), None), 3, Order(0, "primary", 4)),
        ((stored("primary", 3), None), 5, Order(0, "primary", 6)),  # it never heard of those after
        ((stored("primary", 3), follower("standby", 2)), 0, Order(0, "primary", 4, "b")),
        # Nobody knows what was ordered last.
        ((None, follower("standby", 2)), 0, None),
        ((stored("primary", 2), stored("standby", 2, "b")), 0, Order(0, "primary", 3, "b")),
        ((stored("standby", 2), stored("primary", 2, "b")), 0, Order(1, "primary", 3, "a")),
        ((stored("primary", 2), stored("primary", 5, "b")), 0, Order(1, "primary", 6, "a")),
        ((stored("primary", 2), stored("", 0, "b")), 0, Order(0, "primary", 3, "b")),
        # A folder is gone.
        ((NEW, follower("standby", 2)), 2, Order(1, "primary", 3, "a")),
        # Damage.
        ((stored("primary", 2, role="damaged"), follower("standby", 2)), 2, Order(1, "primary", 3, "a")),
        ((stored("primary", 2, role="damaged"), stored("standby", 2, "b")), 0, Order(1, "primary", 3, "a")),
        # Two who think that they lead.
        ((primary(2), primary(3, "b", "a")), 3, Order(0, "end")),
        ((Seen("fenced", 2, "a"), primary(3, "b", "a")), 3, Order(0, "end")),
    ],
)
def test_orders(seen, issued, order):
    assert next_order(seen, Issued(issued)) == order


@pytest.mark.parametrize(
    ("seen", "issued"),
    [
        ((stored("primary", 3, role="damaged", problem="byte 7"), stored("standby", 2, "b")), 0),
        ((stored("primary", 2, role="damaged", problem="byte 7"), follower("filling", 2)), 0),
        ((stored("", 0), stored("filling", 2, "b")), 0),
        ((NEW, follower("standby", 2)), 3),  # the primary had gone on alone, and its folder is gone
    ],
)
def test_where_nobody_has_all_it_is_said(seen, issued):
    with pytest.raises(JournalError):
        next_order(seen, Issued(issued))


class Process:
    """A model of ps/member.py: the numbers of the updates that its memory and its folder have."""

    def __init__(self, address):
        self.address, self.kept, self.kept_term, self.disk = address, "", 0, 0
        self.start()

    def start(self):
        self.role, self.term, self.other, self.has_standby = "undecided", self.kept_term, "", False

    def seen(self):
        return Seen(self.role, self.term, self.address, self.other, self.has_standby, self.kept)

    def obey(self, order):
        if order.role == "primary":
            self.kept = "primary"
        else:
            self.kept, self.disk = "filling", 0
        self.role = "primary" if order.role == "primary" else "empty"
        self.term = self.kept_term = order.term
        self.other, self.has_standby = order.other, order.has_standby


@pytest.mark.parametrize("seed", range(200))
def test_whoever_leads_has_every_acknowledged_update(seed):
    rng = np.random.default_rng(seed)
    processes, alive, issued, acknowledged = [Process("a"), Process("b")], [True, True], Issued(), 0
    for _ in range(300):
        event = rng.choice(["look", "look", "look", "fill", "push", "push", "kill", "start", "forget"])
        leading = [each for each, lives in zip(processes, alive, strict=True) if lives and each.role == "primary"]
        assert len(leading) <= 1
        leader = leading[0] if leading else None
        other = None if leader is None else processes[1 - processes.index(leader)]
        is_paired = other is not None and leader.has_standby and other.term == leader.term
        follows = is_paired and alive[processes.index(other)]
        if event == "look":
            order = next_order([each.seen() if lives else None for each, lives in zip(processes, alive)], issued)
            if order is not None and order.role != "end":
                issued = Issued(order.term, order.place) if order.role == "primary" else issued
                if rng.random() < 0.9:  # else the order is lost
                    processes[order.place].obey(order)
        elif event == "fill" and follows and other.role in ("empty", "filling"):
            other.role = {"empty": "filling", "filling": "standby"}[other.role]
            if other.role == "standby":
                other.kept, other.disk = "standby", leader.disk
        elif event == "push" and leader is not None:
            if not (is_paired and other.kept == "standby"):
                leader.disk += 1  # alone
                acknowledged = leader.disk
            elif follows:
                leader.disk += 1
                other.disk = acknowledged = leader.disk
        elif event == "kill":
            alive[rng.integers(2)] = False
        elif event == "start":
            place = int(rng.integers(2))
            if not alive[place]:
                alive[place] = True
                processes[place].start()
        elif event == "forget" and all(alive):
            issued = Issued()  # the authority was started anew
        for each, lives in zip(processes, alive, strict=True):
            assert not (lives and each.role == "primary") or each.disk >= acknowledged
