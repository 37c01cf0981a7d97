"""Locks of three processes that speak over real sockets; one is killed while all work."""

import time
from pathlib import Path

import pytest

from bench.dlm import recovery, sockets

NODES = [1, 2, 3]
NAMES = 6


def wait_for_uses(folder: Path, nodes: list[int], count: int) -> None:
    """Wait until each of the nodes has used each name so many times more."""
    before = {node: uses(folder, node) for node in nodes}
    deadline_s = time.perf_counter() + 300
    while any(min(map(int.__sub__, uses(folder, n), before[n])) < count for n in nodes):
        assert time.perf_counter() < deadline_s, "nobody goes on"
        time.sleep(0.02)


def uses(folder: Path, node: int) -> list[int]:
    texts = ((folder / f"name {number}") for number in range(NAMES))
    return [t.read_bytes().count(b"+%d\n" % node) if t.exists() else 0 for t in texts]


@pytest.mark.parametrize("dead", NODES)
def test_who_is_killed_keeps_nobody_waiting_and_nobody_is_let_in_twice(
    tmp_path: Path, dead: int
) -> None:
    others = [node for node in NODES if node != dead]
    with sockets.running(len(NODES)) as nodes:
        nodes.start(NODES, "contend", folder=str(tmp_path), names=NAMES, tasks=4)
        wait_for_uses(tmp_path, NODES, 5)
        nodes.kill(dead)
        nodes.together(others, "enter", epoch=2, members=others, leaving=[dead])
        nodes.together(others, "enter", epoch=3, members=others)
        wait_for_uses(tmp_path, others, 5)
        nodes.start(others, "stop")
        ended = {node: dict([nodes.ended(node), nodes.ended(node)]) for node in others}
    assert all(ended[node]["contend"] >= 10 * NAMES for node in others)
    for number in range(NAMES):
        said = (tmp_path / f"name {number}").read_bytes().split()
        inside = b""
        for word in said:
            sign, node = word[:1], word[1:]
            if sign == b"+":
                assert inside in (b"", b"%d" % dead), (number, inside, node)
                inside = node
            else:
                assert inside == node
                inside = b""
        assert inside in (b"", b"%d" % dead)
        assert said.count(b"+%d" % dead) - said.count(b"-%d" % dead) in (0, 1)


def test_all_locks_under_a_killed_master_have_a_new_one() -> None:
    found = recovery.measure(2000)
    assert found["settled_s"] > 0
    assert sum(node["locks"] for node in found["nodes"]) == 2001
