"""A tree moves: what waits, what stays as it was, and what happens when an end is lost."""

import pytest

from dlm.core.migration import PAGE
from dlm.moving import Frozen, Handover, Settled
from dlm.sim.script import Script


def play(*lines: str) -> Script:
    script = Script()
    for line in lines:
        script.run(line)
    return script


def rest(script: Script) -> list[str]:
    """Let everything happen that is to happen at once."""
    said: list[str] = []
    while any(script.links.values()) or any(c.deadline_s <= 0 for c in script.cores.values()):
        said += script.run("settle") + script.run("wait 0")
    return said


def master_of(script: Script, root: bytes) -> list[int]:
    return [node for node, core in script.cores.items() if root in core.mastery.trees]


def test_a_frozen_tree_grants_nothing_and_others_go_on() -> None:
    script = play("nodes 3", "lock n1 a PR", "lock n1 b PR", "settle", "lock n2 a PR", "settle")
    script.run("move n1 a n3")
    script.run("lock n3 a PR as late")
    script.run("lock n3 b PR as other")
    script.run("deliver n1 n2")
    answers = script.links[2, 1]
    frozen = answers.pop()
    assert isinstance(frozen, Frozen)  # and it is on its way for long
    rest(script)
    assert script.locks["other"][1].mode is not None
    assert script.locks["late"][1].mode is None
    assert master_of(script, b"a") == [1]
    answers.append(frozen)
    rest(script)
    assert script.locks["late"][1].mode is not None
    assert master_of(script, b"a") == [3]


def test_queues_their_order_and_values_arrive_as_they_were() -> None:
    script = play("nodes 4", "lock n1 a EX VALBLK", "settle", "convert n1:a PW lvb=one", "settle")
    script.run("lock n2 a PW VALBLK")
    script.run("settle")
    script.run("lock n3 a EX VALBLK")
    script.run("settle")
    script.run("lock n4 a PR VALBLK")
    script.run("settle")
    script.cores[1].here.now_s = 7.0
    script.run("move n1 a n2")
    rest(script)
    assert master_of(script, b"a") == [2]
    (resource,) = script.cores[2].mastery.trees[b"a"].resources.values()
    assert [(copy.node, copy.sequence) for copy in resource.waiting] == [(2, 1), (3, 2), (4, 3)]
    assert [copy.node for copy in resource.granted] == [1]
    assert resource.lvb == b"one"
    script.run("unlock n1:a lvb=two")
    rest(script)
    assert script.locks["n2:a"][1].lvb == b"two"
    assert script.locks["n3:a"][1].mode is None
    script.run("unlock n2:a")
    rest(script)
    assert script.locks["n3:a"][1].mode is not None


def test_what_an_owner_does_meanwhile_reaches_the_new_master() -> None:
    script = play("nodes 3", "lock n1 a PR", "settle", "lock n2 a PR", "settle")
    script.run("move n1 a n3")
    script.run("deliver n1 n2")  # Freeze
    script.run("convert n2:a EX")
    script.run("unlock n1:a")
    script.run("lock n2 a/x EX")
    rest(script)
    assert master_of(script, b"a") == [3]
    assert script.locks["n2:a"][1].mode is not None
    assert script.locks["n2:a"][1].mode.name == "EX"
    assert script.locks["n2:a/x"][1].mode is not None
    assert [copy.node for copy in script.cores[3].mastery.copies.values()] == [2, 2]


def test_a_large_tree_goes_in_pages() -> None:
    script = play("nodes 2", "lock n1 a NL", "settle")
    names = [f"a/{n}" for n in range(3 * PAGE)]
    for name in names:
        script.run(f"lock n2 {name} PR")
    script.run("settle")
    script.run("move n1 a n2")
    pages = 0
    while master_of(script, b"a") == [1]:
        script.run("settle")
        script.run("wait 0")
        pages += sum(isinstance(message, Handover) for message in script.links[1, 2])
    rest(script)
    assert pages > 2
    tree = script.cores[2].mastery.trees[b"a"]
    assert list(tree.resources) == [b"", *(name[2:].encode() for name in names)]
    assert not script.cores[1].mastery.copies


@pytest.mark.parametrize("before", range(12))
@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_a_node_is_lost_at_any_step(before: int, lost: int) -> None:
    """Node 1 hands the tree to node 3; node 2 waits for node 1, node 4 is its directory node."""
    script = play("nodes 4")
    here = script.cores[1].here
    root = next(f"r{n}" for n in range(99) if here.directory_of(b"r%d" % n) == 4)
    for line in (f"lock n1 {root} EX as held", f"lock n2 {root} EX as wanted"):
        script.run(line)
        script.run("settle")
    script.run(f"move n1 {root} n3")
    for _ in range(before):
        link = next((link for link, queue in sorted(script.links.items()) if queue), None)
        script.run("deliver n{} n{}".format(*link) if link else "wait 0")
    script.run(f"crash n{lost}")
    script.run("view")
    rest(script)
    if lost != 1:
        assert script.locks["held"][1].mode is not None
        script.run("unlock held")
        rest(script)
    assert len(master_of(script, root.encode())) == 1
    if lost != 2:
        assert script.locks["wanted"][1].mode is not None
    for core in script.cores.values():
        assert not core.mastery.departures
        assert not core.migration.arriving


@pytest.mark.parametrize("line", ["move n1 x n2", "move n1 a n1", "move n1 a n9", "move n2 a n1"])
def test_what_cannot_move_stays(line: str) -> None:
    script = play("nodes 2", "lock n1 a EX", "settle", line)
    assert master_of(script, b"a") == [1]
    assert not any(script.links.values())


def test_a_name_that_the_directory_does_not_know_stays() -> None:
    script = play("nodes 2")
    here = script.cores[1].here
    root = next(f"r{n}" for n in range(99) if here.directory_of(b"r%d" % n) == 2)
    script.run(f"lock n1 {root} EX new")
    script.run(f"move n1 {root} n2")
    assert not script.cores[1].mastery.departures


def test_how_long_a_tree_was_frozen_is_known() -> None:
    script = play("nodes 2", "lock n1 a EX", "settle", "move n1 a n2", "wait 0", "deliver n1 n2")
    assert any(isinstance(message, Settled) for message in script.links[2, 1])
    script.run("wait 0.25")
    rest(script)
    assert script.cores[1].migration.left == 1
    assert script.cores[2].migration.taken == 1
    assert script.cores[1].migration.longest_s == pytest.approx(0.25)
