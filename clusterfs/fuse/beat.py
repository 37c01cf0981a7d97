"""What the daemon shares with its supervisor: beats, the lease, and the inodes with cached pages.

A piece of anonymous shared memory, made before the fork, of native unsigned 64-bit words:

    word 0   beats           counted up by the daemon's event loop
         1   lease_end_ns    on CLOCK_BOOTTIME: until then what the kernel caches may be believed
         2   node            who the daemon is in the cluster; 0: nobody yet
         3   incarnation
         4   drops           counted up by the supervisor: it dropped every cache
         5   used            slots of the table below that were ever used
         64  inodes          the table; 0: an empty slot

One side writes each word, an aligned word is written at once, and nobody needs two words to agree;
so there is no lock. Beside it a socket carries the /dev/fuse descriptor from daemon to supervisor.

Imports nothing big: the supervisor lives in this module's process image.
"""

import mmap
import socket
import time
from typing import Final

BEATS: Final = 0
LEASE_END: Final = 1
NODE: Final = 2
INCARNATION: Final = 3
DROPS: Final = 4
USED: Final = 5
TABLE: Final = 64

CAPACITY: Final = 65536
_FOREVER: Final = 2**63 - 1


def boottime_ns() -> int:
    """Return CLOCK_BOOTTIME: it counts while the machine is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Beat:
    """The daemon's side; the supervisor reads `words`."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._memory = mmap.mmap(-1, (TABLE + capacity) * 8)
        self.words = memoryview(self._memory).cast("Q")
        self.words[LEASE_END] = _FOREVER
        self._supervisor: socket.socket | None = None

    def supervise_through(self, supervisor: socket.socket) -> None:
        """Send descriptors to the supervisor at the other end of this socket."""
        self._supervisor = supervisor

    def identify(self, node: int, incarnation: int) -> None:
        """Say who the daemon is now; at start and after each readmission."""
        self.words[INCARNATION] = incarnation
        self.words[NODE] = node

    def renew(self, lease_left_s: float) -> None:
        """Say that the event loop runs, and how long the lease still holds. Call it often."""
        left_ns = round(max(-1e9, min(lease_left_s, 1e9)) * 1e9)
        self.words[LEASE_END] = max(0, boottime_ns() + left_ns)
        self.words[BEATS] += 1

    @property
    def drops(self) -> int:
        """How often the supervisor had to drop the caches."""
        return self.words[DROPS]

    def attach(self, fd: int, mountpoint: str, connection: int) -> None:
        """Hand a duplicate of the session's descriptor to the supervisor.

        `connection` is the minor number of the mount's device.
        """
        if self._supervisor is not None:
            text = f"{connection} {mountpoint}".encode(errors="surrogateescape")
            socket.send_fds(self._supervisor, [text], [fd])


def received_attachment(daemon: socket.socket) -> tuple[int, int, str] | None:
    """Return (descriptor, connection, mount point) that `attach` sent, or None at its end."""
    text, descriptors, _flags, _address = socket.recv_fds(daemon, 8192, 1)
    if not text or not descriptors:
        return None
    connection, mountpoint = text.decode(errors="surrogateescape").split(" ", 1)
    return descriptors[0], int(connection), mountpoint
