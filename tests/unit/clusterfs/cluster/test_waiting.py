"""A start that waits for other nodes names them, once, in words for people."""

from typing import cast

import msgspec
import trio
import trio.testing

from clusterfs.cluster import membership, waiting
from clusterfs.cluster.node import Membership
from clusterfs.cluster.views import Member, State, View
from clusterfs.errors import ProviderAway


class Stopped:
    """A membership whose groups wait for node 2, and whose provider is away at first."""

    def __init__(self) -> None:
        view = membership.founded("c", 4, 2)
        for node in (1, 2):
            member = Member(node, node, f"n{node}", f"127.0.0.1:{node}", State.UP, f"s{node}")
            view = membership.joined(view, member, set())
        both = membership.in_sync(view, 2, 2, range(4))
        assert both is not None
        self.view: View = msgspec.structs.replace(
            both, stopped=(True,) * 4, members=both.members[:1]
        )
        self.asked = 0

    async def names(self) -> dict[int, str]:
        self.asked += 1
        if self.asked == 1:
            raise ProviderAway
        return {1: "here", 2: "there"}


async def test_the_awaited_nodes_are_named_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stopped, said = Stopped(), list[str]()
    until_s = autojump_clock.current_time() + 30
    await waiting.explain(
        cast("Membership", stopped), lambda: trio.current_time() < until_s, said.append
    )
    assert said == ["there: the newest data may be there; start them too"]
