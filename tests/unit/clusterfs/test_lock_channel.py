"""Lock messages reach the lock manager in their view, in order, or not at all."""

from typing import Any

import msgspec
import pytest

from clusterfs.cluster.views import Member, State, View
from clusterfs.lock_channel import LockChannel
from dlm.errors import LockLost
from dlm.messages import BadMessage
from dlm.net import Malformed, Refused


class Node:
    def __init__(self) -> None:
        self.view_epoch = 5
        self.known: list[int] = []
        self.poked: list[int] = []
        self.delivered: list[tuple[int, bytes]] = []
        self.failure: Exception | None = None

    @property
    def locks(self) -> Any:
        return self

    def heard(self, epoch: int) -> None:
        self.known.append(epoch)

    def poke(self, epoch: int) -> None:
        self.poked.append(epoch)

    def deliver(self, sender: int, body: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self.delivered.append((sender, body))


def view(epoch: int) -> View:
    members = tuple(Member(n, 7, f"n{n}", "", State.UP, "") for n in (1, 2))
    empty = View(epoch, "", 1, members, (), (), (), (), epoch)
    return msgspec.structs.replace(empty, epoch=epoch)


def test_a_message_of_this_view_is_delivered_and_one_of_the_next_waits_with_all_after_it() -> None:
    node = Node()
    channel = LockChannel(node)
    channel.message(2, 7, 5, b"now", b"")
    channel.message(2, 7, 6, b"early", b"")
    channel.message(2, 7, 5, b"after it", b"")
    assert (node.delivered, node.poked, node.known) == ([(2, b"now")], [6, 5], [5, 6, 5])
    channel.drain(view(5))
    assert len(node.delivered) == 1
    channel.drain(view(6))
    assert node.delivered == [(2, b"now"), (2, b"early"), (2, b"after it")]


def test_what_waited_is_not_delivered_from_an_incarnation_that_is_gone_or_after_a_loss() -> None:
    node = Node()
    channel = LockChannel(node)
    channel.message(2, 6, 6, b"of an earlier start", b"")
    channel.drain(view(6))
    channel.message(2, 7, 7, b"early", b"")
    channel.clear()
    channel.drain(view(7))
    assert node.delivered == []


def test_garbage_is_malformed_and_a_lost_lockspace_is_silent() -> None:
    node = Node()
    channel = LockChannel(node)
    node.failure = BadMessage("what?")
    with pytest.raises(Malformed, match="what"):
        channel.message(2, 7, 5, b"", b"")
    node.failure = LockLost()
    channel.message(2, 7, 5, b"", b"")
    with pytest.raises(Refused):
        channel.begin_call(2, 7, 5, b"", b"")
