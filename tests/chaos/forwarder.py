"""TCP from a fixed port to a shard's, which can be cut, held up, or made to swallow answers.

    forward   bytes pass
    hold      bytes wait, in both directions, as on a line that drops every packet for a moment
    swallow   what the shard says disappears: it has done what it was asked, and nobody hears of it

What was swallowed is missing from a stream, so `swallow` must be followed by `cut`.
"""

import contextlib
import socket
import threading

_PIECE_BYTES = 1 << 18


class Forwarder:
    """Runs from its making to `close`. Thread-safe."""

    def __init__(self, target_port):
        self.target_port = target_port
        self._passing, self._swallowing = threading.Event(), False
        self._passing.set()
        self._pairs = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        """End all connections; new ones are taken. Returns how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            _end(pair)
        return len(pairs)

    def hold(self):
        """Let no byte pass until `forward`."""
        self._passing.clear()

    def swallow(self):
        """Drop what the shard says from now on."""
        self._swallowing = True

    def forward(self):
        """Let bytes pass again."""
        self._swallowing = False
        self._passing.set()

    def close(self):
        """Cut all and stop listening."""
        self._listener.close()
        self.forward()
        self.cut()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                shard = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
            except OSError:
                client.close()  # a client sees a shard that is down as it would without the forwarder
                continue
            pair = (client, shard)
            for each in pair:
                each.settimeout(None)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.add(pair)
            for source, sink in (pair, pair[::-1]):
                threading.Thread(target=self._pump, args=(pair, source, sink), daemon=True).start()

    def _pump(self, pair, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                self._passing.wait()
                if source is pair[1] and self._swallowing:
                    continue
                sink.sendall(data)
        with self._lock:
            self._pairs.discard(pair)
        _end(pair)


def _end(pair):
    for each in pair:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
