"""What a lockspace asks its shell to do, in order; a core does none of it itself. PURE."""

import msgspec

from dlm.events import Hearing, Lock, RangeRequest
from dlm.messages import Message, Status
from dlm.modes import Mode


class Send(msgspec.Struct, frozen=True, gc=False):
    """Deliver `message` to `node`, after everything sent to it before."""

    node: int
    message: Message


class Complete(msgspec.Struct, frozen=True, gc=False):
    """Tell the user how its request or conversion ended."""

    lock: Lock
    status: Status


class Notify(msgspec.Struct, frozen=True, gc=False):
    """Tell the user that its lock keeps others from `mode`."""

    lock: Lock
    mode: Mode


class Answered(msgspec.Struct, frozen=True, gc=False):
    """Tell the user that its request for a range has its verdict."""

    request: RangeRequest


class Heard(msgspec.Struct, frozen=True, gc=False):
    """Tell the user that a hearing has ended."""

    hearing: Hearing


Effect = Send | Complete | Notify | Answered | Heard
