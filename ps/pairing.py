"""Which process of a pair is to be what: the decisions of the one authority over it. Plain: what was seen goes in, the
next order comes out.

Every order to a primary has a new term. Who takes over from a primary that cannot be asked must have reached the term
of the last such order, for only then it has every update that was acknowledged; so an authority notes it before it
sends the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ps.errors import JournalError
from ps.wire import weir_pb2 as pb

_FOLLOWING = ("empty", "filling", "standby")


@dataclass(frozen=True)
class Seen:
    """What a live process says (ps/member.py), and where it is. role: also silent, of one that does not answer but may
    yet serve.
    """

    role: str
    term: int = 0
    address: str = ""
    other: str = ""
    has_standby: bool = False
    kept: str = ""
    problem: str = ""

    @classmethod
    def of(cls, status: pb.PairStatus, address: str) -> Seen:
        """From a process's own account."""
        return cls(status.role, status.term, address, status.other, status.has_standby, status.kept, status.problem)


@dataclass(frozen=True)
class Order:
    """place: 0 or 1. role: end: the process is to be ended and started anew."""

    place: int
    role: Literal["primary", "standby", "end"]
    term: int = 0
    other: str = ""
    has_standby: bool = False


class Issued(NamedTuple):
    """The last order to a primary. term 0: not known."""

    term: int = 0
    place: int = 0


def next_order(seen: Sequence[Seen | None], issued: Issued) -> Order | None:
    """seen: of both places; None: no process there, or none yet. issued: the last order to a primary. Returns None
    where all is well, or more must be seen first.

    Raises JournalError where neither process has all that was acknowledged.
    """
    newest = max([issued.term, *(each.term for each in seen if each is not None)])
    leading = [(each.term, place) for place, each in enumerate(seen) if each is not None and each.role == "primary"]
    if leading:
        return _beside(seen, max(leading)[1], newest + 1)
    place = _heir(seen, issued)
    if place is None:
        return None
    other = seen[1 - place]
    return Order(place, "primary", newest + 1, "" if other is None else other.address)


def _beside(seen: Sequence[Seen | None], place: int, term: int) -> Order | None:
    """There is a primary: what next, that it has a standby?"""
    primary, other = seen[place], seen[1 - place]
    assert primary is not None
    if other is None:  # the standby is gone: updates wait for it no longer
        return Order(place, "primary", term, primary.other) if primary.has_standby else None
    if other.role == "silent":
        return None  # it answers again, or is ended
    if other.role in ("primary", "fenced", "broken"):
        return Order(1 - place, "end")
    is_standby = primary.has_standby and primary.other == other.address and primary.term == other.term
    if other.role in _FOLLOWING and is_standby:
        return None
    if other.role == "empty" and other.term > primary.term:
        return Order(place, "primary", other.term, other.address, has_standby=True)
    if other.role in _FOLLOWING and other.term > primary.term:
        return None  # it is being filled: what the primary said of itself is older
    return Order(1 - place, "standby", term, primary.address)


def _heir(seen: Sequence[Seen | None], issued: Issued) -> int | None:
    """There is no primary: who becomes it?"""
    present = [each for each in seen if each is not None]
    if any(each.role == "silent" for each in present) or not present:
        return None
    # What the newest primary has acknowledged: its folder tells; where that cannot be seen, what it was ordered last.
    least = max([each.term for each in present if each.kept == "primary"], default=0)
    last = seen[issued.place]
    if last is None or not last.kept:
        least = max(least, issued.term)
    able = [
        (each.term, each.role == "standby", each.kept == "primary", -place)
        for place, each in enumerate(seen)
        if each is not None
        and (each.role == "standby" or (each.role == "undecided" and each.kept in ("primary", "standby")))
        and each.term >= least
    ]
    if able and (issued.term or len(present) == 2):
        return -max(able)[3]
    if len(present) < 2 or able:
        return None
    damaged = [each for each in present if each.role == "damaged"]
    if damaged:
        raise JournalError(f"{damaged[0].problem}; no standby has what it had")
    if all(each.role == "undecided" and not each.kept for each in present):
        return 0  # both are new
    raise JournalError(
        f"neither process of the pair has all that was acknowledged, up to term {least}: the primary's folder is gone; "
        "bring it back, or restore a checkpoint"
    )


class Authority:
    """Over one pair whose processes report by themselves and fetch their orders. Single-threaded; time is an argument.

    One that was started anew knows nothing of the past, and gives a shard to nobody before both processes reported, or
    one that leads.
    """

    def __init__(self, lease_seconds: float) -> None:
        self.failed = ""  # why nobody can lead, or empty
        self._lease_seconds = lease_seconds
        self._issued = Issued()
        self._reports: list[tuple[Seen, float] | None] = [None, None]

    def report(self, place: int, seen: Seen, *, now: float) -> None:
        """A process says what it is."""
        self._reports[place] = (seen, now)

    def order(self, place: int, *, now: float) -> pb.PairRequest | None:
        """What the process at a place, which reported just now, is to do. role "end": to end, and be started anew."""
        seen = self._seen(now)
        try:
            order = next_order(seen, self._issued)
            self.failed = ""
        except JournalError as error:
            self.failed = str(error)
            return None
        if order is None or order.place != place:
            return None
        if order.role == "primary":
            self._issued = Issued(order.term, order.place)
        return message_of(order, predecessor_is_dead=_has_replaced_the_primary(seen[1 - place]))

    def leads(self, place: int) -> bool:
        """Whether the process at a place is the primary, as far as is known."""
        terms = [report[0].term if report and report[0].role == "primary" else -1 for report in self._reports]
        return terms[place] >= 0 and terms[place] == max(terms)

    def describe(self, now: float) -> list[dict[str, object]]:
        """Of both processes: role, address, term; empty of one that is gone."""
        return [
            {} if seen is None else {"role": seen.role, "address": seen.address, "term": seen.term}
            for seen in self._seen(now)
        ]

    def _seen(self, now: float) -> list[Seen | None]:
        """Whoever was silent for a lease counts as gone: a primary's own lease has ended before it is replaced."""
        return [
            None if report is None or now - report[1] > self._lease_seconds else report[0] for report in self._reports
        ]


def message_of(order: Order, *, predecessor_is_dead: bool) -> pb.PairRequest:
    """An order as it travels."""
    return pb.PairRequest(
        term=order.term,
        role=order.role,
        other=order.other,
        has_standby=order.has_standby,
        predecessor_is_dead=predecessor_is_dead,
    )


def _has_replaced_the_primary(seen: Seen | None) -> bool:
    """Whether this process has the folder of the primary before, and so its lock: that one has ended."""
    return seen is not None and seen.role in ("undecided", "damaged") and seen.kept == "primary"
