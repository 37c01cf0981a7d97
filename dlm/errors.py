"""Everything a lock caller may see.

LockError              EIO        a bug or a broken peer
|-- WouldBlock         EAGAIN     a NOQUEUE request lost
|-- LockBusy           EBUSY      an operation on this lock is already in flight
|-- LockCancelled      ECANCELED  the request was cancelled before it was granted
|-- DeadlockVictim     EDEADLK    this request was chosen to give way
|-- NotOffered         EINVAL     the dialect in use has no such mode, flag or name
|-- LockLost           ESTALE     this node was removed while holding or asking
`-- PeerLost           EHOSTDOWN  the peer is no longer a member; the call may or may not have run
"""

import errno
from typing import ClassVar


class LockError(Exception):
    """Base of all lock failures; `errno` is what a system call would return."""

    errno: ClassVar[int] = errno.EIO


class WouldBlock(LockError):
    """The lock is held in a conflicting mode and the caller would not wait."""

    errno: ClassVar[int] = errno.EAGAIN


class LockBusy(LockError):
    """A request or conversion of this very lock is still in flight."""

    errno: ClassVar[int] = errno.EBUSY


class LockCancelled(LockError):
    """The request was cancelled before it could be granted."""

    errno: ClassVar[int] = errno.ECANCELED


class DeadlockVictim(LockError):
    """Granting this request would close a cycle; this request was chosen to give way.

    The message tells the whole cycle: who waits for what, held by whom.
    """

    errno: ClassVar[int] = errno.EDEADLK


class NotOffered(LockError):
    """The dialect in use has no such mode, flag, name or length, or not in this combination."""

    errno: ClassVar[int] = errno.EINVAL


class LockLost(LockError):
    """This node was removed from the cluster: every lock it held or asked for is void."""

    errno: ClassVar[int] = errno.ESTALE


class PeerLost(LockError):
    """The peer left the cluster before it answered; what was asked may or may not have happened."""

    errno: ClassVar[int] = errno.EHOSTDOWN
