"""What the daemon shares with its supervisor: beats, the lease, and the inodes with cached pages.

A piece of shared memory without a name, of native unsigned 64-bit words. The daemon inherits it; so
does the one that takes the mount over if the first one ends:

    word 0   beats           counted up by the daemon's event loop
         1   lease_end_ns    on CLOCK_BOOTTIME: until then what the kernel caches may be believed
         2   node            who the daemon is in the cluster; 0: nobody yet
         3   incarnation
         4   drops           counted up by the supervisor: it dropped every cache
         5   used            slots of the table below that were ever used
         6   succession      what becomes of the mount when the daemon ends, see Succession
         7   epoch           the daemon's view, or its last one
         8   handles_used    slots of the handles' table that were ever used
         9   takeovers       counted up by the supervisor
         10  locks_used      slots of the file locks' table that were ever used
         64  inodes          the table; 0: an empty slot
             handles         behind it: the open handles, see journal.py
             locks           behind them: file locks, see lock_journal.py

One side writes each word, an aligned word is written at once, and nobody needs two words to agree;
so there is no lock. Beside it a socket carries the /dev/fuse descriptor from daemon to supervisor.

Imports nothing big: the supervisor lives in this module's process image.
"""

import enum
import mmap
import os
import socket
import time
from typing import Final, NamedTuple

BEATS: Final = 0
LEASE_END: Final = 1
NODE: Final = 2
INCARNATION: Final = 3
DROPS: Final = 4
USED: Final = 5
SUCCESSION: Final = 6
EPOCH: Final = 7
HANDLES_USED: Final = 8
TAKEOVERS: Final = 9
LOCKS_USED: Final = 10
TABLE: Final = 64

CAPACITY: Final = 65536
HANDLES: Final = 262144
LOCKS: Final = 65536
HANDLE_WORDS: Final = 3
LOCK_WORDS: Final = 6
_FOREVER: Final = 2**63 - 1


class Succession(enum.IntEnum):
    """What becomes of the mount when its daemon ends."""

    NONE = 0  # it ends too
    AFTER_CRASH = 1  # unless the daemon ended well, another one takes it over
    HANDING_OVER = 2  # another one takes it over, whatever happens to this one on the way
    CLEAN = 3  # ... and nothing was left behind


def boottime_ns() -> int:
    """Return CLOCK_BOOTTIME: it counts while the machine is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Beat:
    """The daemon's side; the supervisor reads `words`."""

    def __init__(
        self,
        capacity: int = CAPACITY,
        handles: int = HANDLES,
        locks: int = LOCKS,
        *,
        memory: int | None = None,
    ) -> None:
        self.capacity = capacity
        self.handles = handles
        self.locks = locks
        self.first_handle = TABLE + capacity
        self.first_lock = self.first_handle + handles * HANDLE_WORDS
        size = (self.first_lock + locks * LOCK_WORDS) * 8
        self.memory = os.memfd_create("clusterfs-beat") if memory is None else memory
        if memory is None:
            os.truncate(self.memory, size)
        self._memory = mmap.mmap(self.memory, size)
        self.words = memoryview(self._memory).cast("Q")
        if memory is None:
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

    @property
    def takeovers(self) -> int:
        """How often the mount got another daemon."""
        return self.words[TAKEOVERS]

    def attach(
        self, fd: int, mountpoint: str, connection: int, init: tuple[bytes, bytes] = (b"", b"")
    ) -> None:
        """Hand a duplicate of the session's descriptor to the supervisor.

        `connection` is the minor number of the mount's device; `init` what kernel and daemon said
        to each other first, for a daemon that takes over.
        """
        if self._supervisor is not None:
            request, reply = (part.hex() or "-" for part in init)
            text = f"{connection} {request} {reply} {mountpoint}"
            socket.send_fds(self._supervisor, [text.encode(errors="surrogateescape")], [fd])


class Attachment(NamedTuple):
    """The session that the supervisor watches."""

    fd: int = -1
    connection: int = 0
    mountpoint: str = ""
    request: str = ""  # of FUSE_INIT, in hexadecimal digits
    reply: str = ""


def received_attachment(daemon: socket.socket) -> Attachment | None:
    """Return what `attach` sent, or None at its end."""
    text, descriptors, _flags, _address = socket.recv_fds(daemon, 8192, 1)
    if not text or not descriptors:
        return None
    words = text.decode(errors="surrogateescape").split(" ", 3)
    request, reply = (word.removeprefix("-") for word in words[1:3])
    return Attachment(descriptors[0], int(words[0]), words[3], request, reply)
