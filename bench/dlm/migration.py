"""A tree with many locks moves to another master, over real sockets, while all of it is in use."""

from typing import Any

from bench.dlm import sockets

LOCKS = 10_000
ROUNDS = 3  # there and back


def measure(locks: int = LOCKS) -> dict[str, Any]:
    """Return the worst of a few moves: how long the tree was frozen, and what that cost."""
    with sockets.running(4) as nodes:
        root, unrelated = nodes.name(4), nodes.name(4)
        nodes.do(1, "keep", root=root)
        nodes.do(3, "keep", root=unrelated)
        nodes.together([1, 2, 3], "fill", root=root, count=locks // 3)
        moves = []
        for _ in range(ROUNDS):
            for source, target in ((1, 2), (2, 1)):
                before = _spent(nodes)
                move = nodes.do(source, "migrate", root=root, target=target, unrelated=unrelated)
                spent = {name: value - before[name] for name, value in _spent(nodes).items()}
                moves.append(move | spent)
    worst = {name: max(move[name] for move in moves) for name in moves[0]}
    return worst | {"locks": locks, "moves": len(moves)}


def _spent(nodes: sockets.Nodes) -> dict[str, float]:
    """Return what all nodes have sent, and used of their processors, so far."""
    members = [1, 2, 3, 4]
    said = nodes.together(members, "messages")
    return {
        "messages": float(sum(sum(sent.values()) for sent in said)),
        "cpu_s": sum(nodes.together(members, "cpu")),
    }
