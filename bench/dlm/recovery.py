"""Recovery of many locks over real sockets: three processes, one of them killed with SIGKILL.

Node 3 makes the names, and so masters them; the others lock them, too. Then it is killed, they
enter the next lock epoch, and each reports when all its trees are thawed, how long a first lock on
one of the lost names took, and how long locks on a name took that has nothing to do with it.
"""

from typing import Any

from bench.dlm import sockets

LOCKS = 100_000
DEAD, SURVIVORS = 3, [1, 2]


def measure(locks: int = LOCKS) -> dict[str, Any]:
    """Kill the master of names on which the others hold so many locks together."""
    names = locks // len(SURVIVORS)
    with sockets.running(len(SURVIVORS) + 1) as nodes:
        unrelated = _name_of_survivors(nodes)
        nodes.do(1, "keep", root=unrelated)
        nodes.do(DEAD, "make", prefix="lost ", count=names)
        nodes.together(SURVIVORS, "share", prefix="lost ", count=names)
        nodes.kill(DEAD)
        found = nodes.together(
            SURVIVORS, "recover", epoch=2, members=SURVIVORS, unrelated=unrelated, lost="lost 7"
        )
    return {"locks": locks, "nodes": found} | {
        key: max(one[key] for one in found)
        for key in ("settled_s", "lost_s", "enter_ms", "unrelated_worst_ms")
    }


def _name_of_survivors(nodes: sockets.Nodes) -> str:
    """Return a root whose directory node is a survivor before and after."""
    return nodes.name(1)
