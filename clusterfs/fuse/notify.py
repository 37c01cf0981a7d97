"""What a FUSE server may say to the kernel unasked, as bytes to write to /dev/fuse.

A notification is a fuse_out_header whose `unique` is 0 and whose `error` is the code, and a body
(linux/fuse.h). One write(2) is one notification; it returns when the kernel has acted on it. The
supervisor uses this too, so it must stay small.
"""

import errno
import os
import struct

NOTIFY_INVAL_INODE = 2
NOTIFY_RESEND = 7
NOTIFY_INC_EPOCH = 8

_HEADER = struct.Struct("=IiQ")
_INVAL_INODE = struct.Struct("=IiQQqq")
_INC_EPOCH_MESSAGE = _HEADER.pack(_HEADER.size, NOTIFY_INC_EPOCH, 0)
_RESEND_MESSAGE = _HEADER.pack(_HEADER.size, NOTIFY_RESEND, 0)
_INIT_FLAGS2 = struct.Struct("=I")  # the upper half of the flags in a fuse_init_in
_INIT_FLAGS2_AT = 40 + 16  # behind the fuse_in_header, four words and then this
_HAS_RESEND = 1 << 39 - 32
RESENT = 1 << 63  # set in the number of a request that was sent before

ATTRIBUTES_ONLY = -1


def invalidate_inode(fd: int, inode: int, offset: int, length: int) -> None:
    """Drop pages (offset, length; 0: to the end) and attributes; ATTRIBUTES_ONLY: no pages.

    Waits for pages of that range that are being read or written right now. Dirty pages are written
    back first, through a WRITE request that someone must answer meanwhile.
    """
    message = _INVAL_INODE.pack(_INVAL_INODE.size, NOTIFY_INVAL_INODE, 0, inode, offset, length)
    _write(fd, message)


def increment_epoch(fd: int) -> bool:
    """Make every cached name be looked up again; False where the kernel cannot (before 6.16).

    Waits for nothing.
    """
    try:
        _write(fd, _INC_EPOCH_MESSAGE)
    except OSError as refused:
        if refused.errno == errno.EINVAL:
            return False
        raise
    return True


def can_resend(init: bytes) -> bool:
    """Tell from a FUSE_INIT request whether the kernel can send requests again (6.9 and newer)."""
    if len(init) < _INIT_FLAGS2_AT + _INIT_FLAGS2.size:
        return False
    return bool(_INIT_FLAGS2.unpack_from(init, _INIT_FLAGS2_AT)[0] & _HAS_RESEND)


def resend(fd: int) -> None:
    """Have every request sent again that was received and not answered; RESENT is set in them."""
    _write(fd, _RESEND_MESSAGE)


def _write(fd: int, message: bytes) -> None:
    try:
        os.write(fd, message)
    except OSError as failure:
        # ENOENT: the kernel does not know the inode. The others: the mount is gone, nothing is
        # cached that could still be reached.
        if failure.errno not in (errno.ENOENT, errno.ENOTCONN, errno.ENODEV, errno.EPERM):
            raise
