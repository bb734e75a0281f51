"""A process of a pair that reports to an authority elsewhere and does what it is told."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

from ps.errors import WeirError
from ps.member import Member
from ps.wire import weir_pb2 as pb

_log = logging.getLogger("weir.pair")


class Reporting:
    """Single-threaded but for the order that is being obeyed: that takes its time, on a thread of its own."""

    def __init__(self, member: Member, place: int) -> None:
        self._member, self._place = member, place
        self._obeying: threading.Thread | None = None

    def says(self) -> dict[str, Any]:
        """place, status and is_busy of a report."""
        is_busy = self._obeying is not None and self._obeying.is_alive()
        return {"place": self._place, "status": self._member.status().SerializeToString(), "is_busy": is_busy}

    def obey(self, order: bytes) -> None:
        """order: a PairRequest, or nothing."""
        if not order:
            return
        request = pb.PairRequest.FromString(order)
        if request.role == "end":
            os.kill(os.getpid(), signal.SIGKILL)  # whoever placed this process starts it anew
        self._obeying = threading.Thread(target=self._run, args=(request,), name="weir-order", daemon=True)
        self._obeying.start()

    def _run(self, request: pb.PairRequest) -> None:
        try:
            self._member.order(request)
        except WeirError as error:
            _log.error("an order could not be obeyed: %s", error)  # the next report says what this process is
