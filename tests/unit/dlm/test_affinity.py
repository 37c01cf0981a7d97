"""Which trees move by themselves, by command, and when their master leaves."""

from dlm.core.affinity import Policy
from dlm.core.mastery import KEEP_S
from dlm.events import Depart, Place
from dlm.sim.script import Script

QUICK = Policy(half_life_s=0.5, least_rate=5.0, lead=2.0, residence_s=2.0, cooldown_s=3.0)


def cluster(policy: Policy | None = QUICK, nodes: int = 3) -> Script:
    script = Script()
    script.run(f"nodes {nodes}")
    for core in script.cores.values():
        core.affinity.enable(policy)
    return script


def pass_time(script: Script, seconds: float, step_s: float = 0.1) -> None:
    for _ in range(round(seconds / step_s)):
        script.run(f"wait {step_s}")
        script.run("settle")
        script.run("wait 0")
        script.run("settle")


def act(script: Script, node: int, event: Place | Depart) -> None:
    script._act(node, event)


def use(script: Script, node: int, leaf: str, times: int) -> None:
    """Ask for a lock of the tree `a` many times, twenty a second."""
    for _ in range(times):
        script.run(f"lock n{node} a/{leaf} PR as used")
        script.run("settle")
        script.run("unlock used")
        pass_time(script, 0.05, 0.05)


def master(script: Script) -> int:
    (node,) = (node for node, core in script.cores.items() if b"a" in core.mastery.trees)
    return node


def held(policy: Policy | None = QUICK) -> Script:
    """Return three nodes of which the first masters the tree `a`."""
    script = cluster(policy)
    script.run("lock n1 a NL")
    pass_time(script, 2.5)
    assert master(script) == 1
    return script


def test_a_tree_goes_to_the_node_that_asks_most_and_stays_there() -> None:
    script = held()
    use(script, 2, "x", 60)
    assert master(script) == 2
    use(script, 2, "x", 60)
    assert master(script) == 2


def test_nothing_moves_without_a_policy() -> None:
    script = held(None)
    use(script, 2, "x", 60)
    assert master(script) == 1
    assert not script.cores[1].mastery.traffic.counts


def test_few_requests_move_nothing() -> None:
    script = held(QUICK._replace(least_rate=50.0))
    use(script, 2, "x", 60)
    assert master(script) == 1


def test_a_node_that_asks_little_more_than_the_master_does_not_get_the_tree() -> None:
    script = held()
    for _ in range(60):
        use(script, 2, "x", 1)
        use(script, 1, "y", 1)
    assert master(script) == 1


def test_two_that_fight_for_a_tree_do_not_drag_it_along() -> None:
    script = held()
    moves = 0
    for _ in range(6):
        for node in (2, 3):
            before = master(script)
            use(script, node, "x", 10)
            moves += master(script) != before
    assert moves <= 1


def test_a_tree_stays_for_a_while_where_it_has_come_to() -> None:
    script = held(QUICK._replace(residence_s=1000.0))
    script.run("move n1 a n3")
    pass_time(script, 0.2)
    assert master(script) == 3
    use(script, 2, "x", 60)
    assert master(script) == 3


def test_a_large_tree_stays() -> None:
    script = held(QUICK._replace(most_locks=1))
    script.run("lock n1 a/second NL")
    use(script, 2, "x", 60)
    assert master(script) == 1


def test_an_attempt_that_came_to_nothing_is_not_made_again_at_once() -> None:
    script = held(QUICK._replace(cooldown_s=1000.0))
    attempts = []
    script.cores[1].migration.start = lambda root, target: bool(attempts.append((root, target)))  # type: ignore[method-assign]
    use(script, 2, "x", 80)
    assert attempts == [(b"a", 2)]


def test_a_wish_is_retried_until_it_is_granted() -> None:
    script = held()
    starts = []
    start = script.cores[1].migration.start

    def reluctant(root: bytes, target: int) -> bool:
        starts.append(target)
        return len(starts) > 3 and start(root, target)

    script.cores[1].migration.start = reluctant  # type: ignore[method-assign]
    act(script, 1, Place(b"a", 3, pin=False))
    script.run("wait 0")
    pass_time(script, 2.0)
    assert master(script) == 3
    assert len(starts) == 4
    assert not script.cores[1].affinity.wishes


def test_a_pinned_tree_goes_there_stays_there_and_is_kept_without_locks() -> None:
    script = held()
    act(script, 1, Place(b"a", 3, pin=True))
    script.run("wait 0")
    pass_time(script, 0.5)
    assert master(script) == 3
    use(script, 2, "x", 60)
    assert master(script) == 3
    script.run("unlock n1:a")
    pass_time(script, 3 * KEEP_S)
    assert master(script) == 3
    act(script, 3, Place(b"a", 0, pin=True))
    pass_time(script, 3 * KEEP_S)
    assert b"a" not in script.cores[3].mastery.trees


def test_whoever_takes_a_tree_that_is_pinned_elsewhere_passes_it_on() -> None:
    script = held()
    script.cores[1].mastery.trees[b"a"].pinned = 3
    script.run("move n1 a n2")
    pass_time(script, 1.0)
    assert master(script) == 3


def test_who_leaves_sends_its_trees_to_those_that_use_them() -> None:
    script = held()
    script.run("lock n2 a/x EX")
    script.run("lock n1 b NL")
    script.run("settle")
    script.run("lock n3 b/y PR")
    script.run("settle")
    for label in ("n1:a", "n1:b"):
        script.run(f"unlock {label}")
    leaver = script.cores[1]
    act(script, 1, Depart())
    script.run("wait 0")
    pass_time(script, 1.0)
    assert leaver.affinity.drained
    assert master(script) == 2
    assert b"b" in script.cores[3].mastery.trees
    assert not leaver.mastery.trees
    script.run("crash n1")
    script.run("view")
    assert not script.cores[2].recovery._orphans
    for label in ("n2:a/x", "n3:b/y"):
        assert script.locks[label][1].mode is not None
