"""Who waits because of whom, on lockspaces that really wait."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from clusterfs.cli.locks import graph
from clusterfs.cli.locks.picture import Node, Operation, Own, Picture, Silent, Use, read_picture
from clusterfs.cli.locks.waits import pid_of, waits
from dlm.modes import Flags, Mode
from dlm.node import Name


def told(picture: Picture) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    return [
        (wait.party.label, wait.wanted, f"{wait.wait_s:g}", [
            (blocker.party.label, blocker.why) for blocker in wait.blockers
        ])
        for wait in waits(picture)
    ]  # fmt: skip


async def test_waits_are_sorted_and_name_holders_and_those_ahead(fought: Any) -> None:
    assert told(fought.picture()) == [
        ("42 read", "PR", "4.5", [("41 write", "holds")]),
        ("43 read", "CR", "3", [("41 write", "holds"), ("42 read", "is ahead")]),
        ("43 open", "EX", "1.5", [("a b", "holds")]),
    ]


async def test_who_does_not_care_for_order_waits_only_for_holders(
    spaces: Any, nursery: trio.Nursery
) -> None:
    one, two, three = spaces.nodes.values()
    await one.lock(Name(b"r"), Mode.PR, owner="holder")

    async def wait(space: Any, mode: Mode, owner: str, flags: Flags) -> None:
        await space.lock(Name(b"r"), mode, owner=owner, flags=flags)

    nursery.start_soon(wait, two, Mode.EX, "first", Flags(0))
    await wait_all_tasks_blocked()
    nursery.start_soon(wait, three, Mode.PW, "second", Flags.NOORDER)
    await wait_all_tasks_blocked()
    nursery.start_soon(wait, three, Mode.CR, "third", Flags(0))
    await wait_all_tasks_blocked()
    found = {who: [name for name, _ in because] for who, _, _, because in told(spaces.picture())}
    assert found["second"] == ["holder"]
    assert found["third"] == ["first", "second"]


@pytest.fixture
async def deadlocked(spaces: Any, nursery: trio.Nursery) -> Picture:
    """Owners A, B and C each hold one lock and want the next one's; D only waits for A's."""

    async def lock(node: int, name: str, owner: str) -> None:
        await spaces.nodes[node].lock(
            Name(name.encode()), Mode.EX, owner=owner, flags=Flags.NODLCKWT
        )

    for node, owner, name in ((1, "A", "a"), (2, "B", "b"), (3, "C", "c")):
        await lock(node, name, owner)
    for node, owner, name in ((1, "A", "b"), (2, "B", "c"), (3, "C", "a"), (2, "D", "a")):
        nursery.start_soon(lock, node, name, owner)
        await wait_all_tasks_blocked()
    picture = spaces.picture()
    assert isinstance(picture, Picture)
    return picture


async def test_a_cycle_is_marked_and_who_hangs_on_to_it_is_not(deadlocked: Picture) -> None:
    found = {(e.waiter.key, e.blocker.key): e.in_cycle for e in graph.edges(deadlocked)}
    cycle = {("A", "B"), ("B", "C"), ("C", "A")}
    assert {pair for pair, in_cycle in found.items() if in_cycle} == cycle
    assert found["D", "A"] is False
    text = graph.text(deadlocked)
    assert "! node 1 A waits" in text
    assert "CYCLE: the 3 marked with ! wait for each other" in text


async def test_graphviz_gets_the_cycle_in_red(deadlocked: Picture) -> None:
    dot = graph.dot(deadlocked)
    assert dot.count("penwidth=2") == 3
    assert dot.count('[label="D"];') == 1


def test_a_long_chain_is_no_cycle_and_needs_no_recursion() -> None:
    many = 3000
    resources = [
        {
            "root": "",
            "leaf": msgspec.to_builtins(b"%d" % number),
            "granted": [{"node": 1, "id": number + 1, "owner": f"o{number}", "granted": "EX"}],
            "waiting": [{"node": 1, "id": many + number + 1, "owner": f"o{number + 1}",
                         "requested": "EX"}],
        }
        for number in range(many)
    ]  # fmt: skip
    picture = read_picture({"node": 1, "resources": resources})
    found = graph.edges(picture)
    assert len(found) == many
    assert not any(edge.in_cycle for edge in found)


FILE = b"\0" * 7 + b"\x2a"


def mounted(number: int, **more: Any) -> Node:
    """A node that describes what its system calls do with locks."""
    return Node(number, name=f"n{number}", **more)


def test_system_calls_stand_for_the_locks_of_a_mount() -> None:
    writer = Operation(41, "write", "EX", 0.0, 1, "dd")
    reader = Operation(42, "read", "PR", 2.5, 9, "cat")
    resource = {
        "root": FILE,
        "granted": [{"node": 1, "id": 5, "owner": "7 old", "granted": "EX"}],
        "waiting": [{"node": 2, "id": 6, "owner": "42 read", "requested": "PR", "wait_s": 2.4}],
    }
    one = msgspec.convert(
        {"node": 1, "name": "n1", "resources": [resource], "uses": ()}, Node, builtin_types=(bytes,)
    )
    one = msgspec.structs.replace(one, uses=(Use(FILE, path="/a/b", users=-1, using=(writer,)),))
    two = mounted(2, uses=(Use(FILE, waiting=(reader,)),))
    [wait] = waits(Picture((one, two)))
    assert (wait.pid, wait.command, wait.operation, wait.wait_s) == (42, "cat", "read", 2.5)
    assert wait.path == "/a/b"
    assert [blocker.party.label for blocker in wait.blockers] == ["pid 41 (dd) write"]


def test_a_lock_that_a_mount_only_keeps_waits_for_nobody() -> None:
    resource = {
        "root": FILE,
        "granted": [{"node": 1, "id": 5, "owner": "42 write", "granted": "EX"}],
        "waiting": [{"node": 2, "id": 6, "owner": "42 write", "requested": "PR"}],
    }
    other = {
        "root": FILE,
        "leaf": b"o",
        "granted": [{"node": 2, "id": 7, "owner": "42 write", "granted": "EX"}],
        "waiting": [{"node": 1, "id": 8, "owner": "42 write", "requested": "EX"}],
    }
    node = msgspec.convert(
        {"node": 1, "resources": [resource, other], "uses": ()}, Node, builtin_types=(bytes,)
    )
    picture = Picture((node, mounted(2, uses=())))
    assert not any(edge.in_cycle for edge in graph.edges(picture))


def test_who_waits_for_a_system_call_of_its_own_node_is_shown() -> None:
    use = Use(FILE, users=-1, mode="EX", using=(Operation(1, "fsync", number=1, command="db"),),
              waiting=(Operation(2, "write", "EX", 0.5, 2, "cp"),))  # fmt: skip
    [wait] = waits(Picture((mounted(1, uses=(use,)),)))
    assert [(b.party.label, b.why) for b in wait.blockers] == [("pid 1 (db) fsync", "uses")]


def test_without_the_master_at_least_the_waiter_is_shown() -> None:
    own = Own(3, FILE, owner="42 read", master=2, requested="PR", acknowledged=False)
    picture = Picture((Node(1, locks=(own,)),), (Silent(2, "no answer within 2 s"),))
    [wait] = waits(picture)
    assert (wait.pid, wait.wanted) == (42, "PR")
    assert [(b.party.node, b.why) for b in wait.blockers] == [(2, "is the master and knows")]


@pytest.mark.parametrize(
    ("owner", "pid"), [("42 write", 42), ("", 0), ("x 1", 0), ("9" * 30, 0), ("12", 12)]
)
def test_the_process_is_in_the_owner_if_it_is_a_number(owner: str, pid: int) -> None:
    assert pid_of(owner) == pid


def test_a_picture_of_real_mounts_with_a_stopped_node() -> None:
    value = msgspec.json.decode((Path(__file__).parent / "recorded" / "mounts.json").read_bytes())
    found = graph.edges(read_picture(value))
    assert [(e.waiter.label, e.blocker.label, e.why, e.lock) for e in found] == [
        ("pid 8054 (python) write", "lock 00000008", "holds", "/d/fought for"),
        ("pid 8065 (python) write", "lock 00000008", "holds", "/d/fought for"),
        ("pid 8065 (python) write", "pid 8054 (python) write", "is ahead", "/d/fought for"),
    ]
    assert not any(edge.in_cycle for edge in found)


def test_calls_of_two_mounts_that_wait_for_each_other_are_a_cycle() -> None:
    """Each uses one file's lock and waits for the other's."""
    names = (b"\0" * 7 + b"\1", b"\0" * 7 + b"\2")
    calls = [Operation(10 + n, "rename", "EX", 1.0, n, "mv") for n in (1, 2)]
    nodes = []
    for number, mine, other in ((1, 0, 1), (2, 1, 0)):
        resource = {
            "root": names[mine],
            "granted": [{"node": number, "id": 5, "granted": "EX"}],
            "waiting": [{"node": 3 - number, "id": 6, "requested": "EX"}],
        }
        uses = (
            Use(names[mine], users=-1, mode="EX", using=(calls[mine],)),
            Use(names[other], waiting=(calls[mine],)),
        )
        node = msgspec.convert(
            {"node": number, "resources": [resource], "uses": ()}, Node, builtin_types=(bytes,)
        )
        nodes.append(msgspec.structs.replace(node, uses=uses))
    found = graph.edges(Picture(tuple(nodes)))
    assert {(e.waiter.label, e.blocker.label) for e in found if e.in_cycle} == {
        ("pid 11 (mv) rename", "pid 12 (mv) rename"),
        ("pid 12 (mv) rename", "pid 11 (mv) rename"),
    }
