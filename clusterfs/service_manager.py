"""What the service manager hears of us: sd_notify(3), a datagram to the socket it names.

Without systemd there is no socket, and nothing happens. The daemon is not the service's main
process (that is its supervisor), so the unit says NotifyAccess=all.
"""

import os
import socket
from contextlib import suppress

_MICROSECONDS = 1e6


class ServiceManager:
    """Says that the node is ready, and, often enough, that it is alive."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        watchdog = os.environ.get("WATCHDOG_USEC", "")
        self.period_s = int(watchdog) / _MICROSECONDS / 3 if watchdog.isdigit() else float("inf")
        self._next_s = 0.0

    def ready(self, status: str) -> None:
        """Let units that wait for this one start."""
        self._say(f"READY=1\nSTATUS={status}")

    def alive(self, now_s: float) -> None:
        """Feed the watchdog; call it as often as you like."""
        if now_s >= self._next_s and self.period_s < float("inf"):
            self._next_s = now_s + self.period_s
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the node ends by itself."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line,
        ):
            line.setblocking(False)
            line.sendto(text.encode(), address)
