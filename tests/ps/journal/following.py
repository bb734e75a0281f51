"""A standby beside a played shard, in this process: what the stream delivers is taken on the stream's thread."""

import threading
import time
from collections import deque
from concurrent.futures import Future

from ps.errors import UnavailableError, WrongEpochError
from ps.journal.lock import Lock
from ps.journal.standby import Standby
from ps.journal.stream import Stream


class Follower:
    """deliver: of a Stream. is_silent: answers nothing. refuses: as one that has taken over."""

    def __init__(self, folder, term=2):
        self.lock = Lock(folder, takes_over=False)
        self.standby = Standby(folder, self.lock, term)
        self.is_silent = self.refuses = False
        self.repeats = 0  # messages that are delivered twice
        self.messages = 0
        self._taking = threading.Lock()

    def deliver(self, term, number, frames):
        answer = Future()
        if self.refuses:
            answer.set_exception(WrongEpochError("it has taken over"))
        elif self.is_silent or term != self.standby.term:
            answer.set_exception(UnavailableError("silent"))
        else:
            with self._taking:
                self.messages += 1
                again = self.repeats > 0
                self.repeats -= again
                for future in (Future(), answer) if again else (answer,):
                    job = self.standby.receive(number, frames, future)
                    for _ in job or ():
                        pass
        return answer

    def close(self):
        self.standby.close()
        self.lock.close()


def follow(play, follower, seconds=5.0):
    """Begin to fill a standby from a shard."""
    journal = play.journal
    if journal.stream is not None:
        journal.stream.release()
    stream = Stream(
        follower.standby.term, follower.deliver, seconds=seconds, standby="beside:0", max_backlog_bytes=1 << 28
    )
    buckets = deque(play.shard.holding.owned.tolist())
    play.shard.write_all(journal, journal.begin_filling(stream), buckets)
    return stream


def until(condition, seconds=10.0):
    """Wait for what another thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)
