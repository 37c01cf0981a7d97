from clusterfs.cluster import consent, membership
from clusterfs.cluster.views import Member, State, View

GROUPS = 4
NAMES = {1: "n1", 2: "n2", 3: "n3", 4: "n4"}


def member(node: int, incarnation: int = 0, *, store: bool = True) -> Member:
    number = incarnation or 10 + node
    return Member(node, number, f"n{node}", "h:1", State.UP, f"s{node}" if store else "")


def cluster_of(*nodes: int, replicas: int = 2) -> View:
    view = membership.founded("c", GROUPS, replicas)
    for node in nodes:
        view = membership.joined(view, member(node))
        view = membership.in_sync(view, node, 10 + node, range(GROUPS)) or view
    return view


def without(view: View, *nodes: int) -> View:
    for node in nodes:
        view = membership.removed(view, {10 + node, 20 + node}) or view
    return view


def test_nodes_have_numbers() -> None:
    assert consent.number_of("n3", NAMES) == 3
    assert consent.number_of("n9", NAMES) is None


def test_a_node_may_go_while_enough_are_left() -> None:
    assert consent.against_retiring(cluster_of(1, 2, 3), 3, NAMES, fewer=False) is None
    said = consent.against_retiring(cluster_of(1, 2), 2, NAMES, fewer=False)
    assert said is not None
    assert "1 node for 2 copies" in said
    assert consent.against_retiring(cluster_of(1, 2), 2, NAMES, fewer=True) is None


def test_the_last_copy_does_not_go() -> None:
    said = consent.against_retiring(cluster_of(1), 1, NAMES, fewer=True)
    assert said is not None
    assert "only copy" in said


def test_nodes_that_retire_already_do_not_count() -> None:
    view = membership.retired(cluster_of(1, 2, 3), 3) or cluster_of()
    said = consent.against_retiring(view, 2, NAMES, fewer=False)
    assert said is not None
    assert "1 node for" in said


def test_a_client_may_go_at_any_time() -> None:
    view = membership.joined(cluster_of(1), member(4, store=False))
    assert consent.against_retiring(view, 4, NAMES, fewer=False) is None


def test_only_who_is_away_and_not_awaited_is_forgotten() -> None:
    view = cluster_of(1, 2)
    said = consent.against_forgetting(view, 2, NAMES)
    assert said is not None
    assert "is a member still" in said
    assert consent.against_forgetting(without(view, 2), 2, NAMES) is None
    stopped = membership.joined(without(view, 2, 1), member(2, 22))
    said = consent.against_forgetting(stopped, 1, NAMES)
    assert said is not None
    assert f"{GROUPS} groups wait for n1" in said
    assert consent.against_retiring(stopped, 1, NAMES, fewer=True) == said


def test_what_may_be_lost_is_told_exactly() -> None:
    view = without(cluster_of(1, 2), 2)  # n1 went on alone
    view = membership.joined(without(view, 1), member(2, 22))
    loss = consent.loss(view, NAMES)
    assert loss == (GROUPS, ("n1",), 0, GROUPS)
    assert "they stay stopped" in loss.text(GROUPS, None)
    assert "EVERYTHING written" in loss.text(GROUPS, "n2")
    together = membership.removed(cluster_of(1, 2), {11, 12}) or view
    together = membership.joined(together, member(2, 22))
    loss = consent.loss(together, NAMES)
    assert loss == (GROUPS, ("n1",), GROUPS, 0)
    assert "everything that was fsynced" in loss.text(GROUPS, None)
    assert consent.loss(cluster_of(1, 2), NAMES).groups == 0


def test_only_a_brick_that_is_here_can_be_the_truth() -> None:
    view = membership.joined(cluster_of(1), member(4, store=False))
    assert consent.against_truth(view, 1, NAMES) is None
    assert consent.against_truth(view, 4, NAMES) is not None
    assert consent.against_truth(view, 3, NAMES) is not None
