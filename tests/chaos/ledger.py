"""What a client was told of each of its updates, written down as it happens: one line an event, one file a client.

    begin N            update N is about to be sent
    done N             it was acknowledged
    failed N WHY       an error after all retries: it may have happened, or not
    wrong N WHAT       the client read something that cannot be

An update without an outcome is that of a client that was killed: it may have happened, or not. A client may be killed
inside its last line.
"""

import errno
import os
from dataclasses import dataclass, field


class LedgerWriter:
    """Appends to a file; what was appended survives the death of the process. Thread-safe."""

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def begin(self, number):
        self._write("begin", number)

    def done(self, number):
        self._write("done", number)

    def failed(self, number, error):
        self._write("failed", number, error)

    def wrong(self, number, what):
        self._write("wrong", number, what)

    def _write(self, word, number, text=""):
        line = f"{word} {number} {text}".replace("\n", " ").rstrip()
        data = f"{line}\n".encode()
        if os.write(self._file, data) != len(data):  # then it would count as never sent what is about to be
            raise OSError(errno.ENOSPC, "the disk of a ledger is full; keep ledgers on another one than journals")


@dataclass
class Ledger:
    """numbers of updates: acknowledged, and with unknown outcome; and what was wrong."""

    acknowledged: set = field(default_factory=set)
    unknown: set = field(default_factory=set)
    wrong: list = field(default_factory=list)
    errors: list = field(default_factory=list)

    @property
    def numbers(self):
        return sorted(self.acknowledged | self.unknown)


def read_ledger(path):
    """The Ledger of a file."""
    ledger = Ledger()
    for line in path.read_text().split("\n")[:-1]:
        word, number, text = (*line.split(" ", 2), "")[:3]
        if word == "begin":
            ledger.unknown.add(int(number))
        elif word == "done":
            ledger.unknown.discard(int(number))
            ledger.acknowledged.add(int(number))
        elif word == "failed":
            ledger.errors.append(text)
        else:
            ledger.wrong.append(line)
    return ledger
