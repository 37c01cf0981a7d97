"""What filesystem operations raise, and the errno each becomes.

FilesystemError            EIO
|-- NoSuchEntry            ENOENT
|   `-- Vanished           ESTALE    the inode is gone: the kernel looks its name up once more
|-- EntryExists            EEXIST
|-- NotADirectory          ENOTDIR
|-- IsADirectory           EISDIR
|-- DirectoryNotEmpty      ENOTEMPTY
|-- NameTooLong            ENAMETOOLONG
|-- PermissionDenied       EACCES
|-- OperationNotPermitted  EPERM
|-- InvalidArgument        EINVAL
|-- NotSupported           EOPNOTSUPP
|-- FileTooLarge           EFBIG
|-- TooManyLinks           EMLINK
|-- NoSuchAttribute        ENODATA
|-- ResultTooLarge         ERANGE
|-- CrossDevice            EXDEV
|-- NoDataBeyond           ENXIO
|-- OutOfSpace             ENOSPC
|-- QuotaExceeded          EDQUOT
|-- TooManyOpenInodes      ENFILE
|-- StaleHandle            EIO       the handle died: another node changed its file meanwhile
|-- Unavailable            EIO       the cluster is away and on_lost=eio
|   `-- ProviderAway       EIO       the store of views did not answer; trying again may help
|-- Interrupted            EINTR     a signal ended the caller's wait; nothing had happened yet
|-- WouldBlock             EAGAIN    a *_nowait call would have to wait
|-- VersionMismatch        EIO       the object is not at the expected version
|-- ChunkCorrupted         EIO       no good copy of a chunk
|-- NoSuchChunk            EIO       the brick has no chunk of that identity
`-- BrickFailed            EIO       the brick refused a write or sync and is read-only now

SetupError                 not a system call's failure: bad config, foreign brick, busy port.
                           Its text is one line that says what is wrong and what to do.
`-- BrickDamaged           the medium lost what was durable: the brick must be synchronised anew
`-- NotAnswering           a daemon's admin socket is missing, silent or refused the request
"""

import errno
from typing import ClassVar


class SetupError(Exception):
    """This node cannot start; the message is one line for the operator."""


class NotAnswering(SetupError):
    """A daemon's admin socket is missing, silent, or refused what was asked."""


class BrickDamaged(SetupError):
    """What was durable cannot be read any more; nothing was truncated. Another replica has it."""


class FilesystemError(Exception):
    """Base of all filesystem failures; `errno` is what the system call returns."""

    errno: ClassVar[int] = errno.EIO


class NoSuchEntry(FilesystemError):
    """No file or directory of that name."""

    errno: ClassVar[int] = errno.ENOENT


class Vanished(NoSuchEntry):
    """The inode is gone since its name was looked up; the name may lead to another by now.

    Linux looks a path up once more after ESTALE, and asks us for every name on it then.
    """

    errno: ClassVar[int] = errno.ESTALE


class EntryExists(FilesystemError):
    """The name is taken."""

    errno: ClassVar[int] = errno.EEXIST


class NotADirectory(FilesystemError):
    """A directory was needed."""

    errno: ClassVar[int] = errno.ENOTDIR


class IsADirectory(FilesystemError):
    """Anything but a directory was needed."""

    errno: ClassVar[int] = errno.EISDIR


class DirectoryNotEmpty(FilesystemError):
    """The directory still has entries."""

    errno: ClassVar[int] = errno.ENOTEMPTY


class NameTooLong(FilesystemError):
    """A name has at most 255 bytes, a symlink's target at most 4095."""

    errno: ClassVar[int] = errno.ENAMETOOLONG


class PermissionDenied(FilesystemError):
    """The mode bits do not allow it."""

    errno: ClassVar[int] = errno.EACCES


class OperationNotPermitted(FilesystemError):
    """Only the owner, or root, may do this."""

    errno: ClassVar[int] = errno.EPERM


class InvalidArgument(FilesystemError):
    """The call makes no sense: a directory moved into itself, an unknown flag."""

    errno: ClassVar[int] = errno.EINVAL


class NotSupported(FilesystemError):
    """A legal call that this filesystem does not offer."""

    errno: ClassVar[int] = errno.EOPNOTSUPP


class FileTooLarge(FilesystemError):
    """A file has at most 16 TiB."""

    errno: ClassVar[int] = errno.EFBIG


class TooManyLinks(FilesystemError):
    """An inode has at most 2**31 - 1 links."""

    errno: ClassVar[int] = errno.EMLINK


class NoSuchAttribute(FilesystemError):
    """No extended attribute of that name."""

    errno: ClassVar[int] = errno.ENODATA


class ResultTooLarge(FilesystemError):
    """An extended attribute has a name of at most 255 bytes and a value of at most 64 KiB."""

    errno: ClassVar[int] = errno.ERANGE


class NoDataBeyond(FilesystemError):
    """There is no data, or no file, from that offset on."""

    errno: ClassVar[int] = errno.ENXIO


class CrossDevice(FilesystemError):
    """Source and target are not on one filesystem."""

    errno: ClassVar[int] = errno.EXDEV


class OutOfSpace(FilesystemError):
    """A replica has no room; nothing was accepted."""

    errno: ClassVar[int] = errno.ENOSPC


class QuotaExceeded(FilesystemError):
    """The quota of a directory above has no room; nothing was accepted."""

    errno: ClassVar[int] = errno.EDQUOT


class TooManyOpenInodes(FilesystemError):
    """More inodes are open on this node than could be dropped in an emergency."""

    errno: ClassVar[int] = errno.ENFILE


class StaleHandle(FilesystemError):
    """The handle died: this node was removed and another changed the file meanwhile."""


class Unavailable(FilesystemError):
    """The cluster is away, and on_lost=eio asks for errors instead of waiting."""


class ProviderAway(Unavailable):
    """The store that keeps the views did not answer; trying again may help."""


class Interrupted(FilesystemError):
    """A signal asked the caller to end while the request waited, before it changed anything."""

    errno: ClassVar[int] = errno.EINTR


class WouldBlock(FilesystemError):
    """A *_nowait call would have to wait."""

    errno: ClassVar[int] = errno.EAGAIN


class VersionMismatch(FilesystemError):
    """The object is not at the version that the transaction expects."""


class ReadOnly(FilesystemError):
    """This node may not change the volume."""

    errno: ClassVar[int] = errno.EROFS


class ChunkCorrupted(FilesystemError):
    """No copy of the chunk has the checksum that its record promises."""


class NoSuchChunk(FilesystemError):
    """The brick has no live chunk of that identity; the block must be sent."""


class BrickFailed(FilesystemError):
    """The brick refused a write or a sync; it is read-only until the node restarts."""
