import pytest

from clusterfs.cluster import membership
from clusterfs.cluster.joining import Applicant, Application, admit, check_identity, weight_of
from clusterfs.cluster.lease import Heartbeats
from clusterfs.cluster.providers import Identity, Registration, Snapshot
from clusterfs.cluster.views import Member, State, View
from clusterfs.errors import SetupError

IDENTITY = Identity("c", bytes(32), 5.0)
N1 = Applicant("n1", "s1", "c", groups=4)


@pytest.mark.parametrize(
    ("gib", "weight"),
    [(0, 1), (1, 1), (15, 15), (16, 16), (17, 16), (1000, 960), (1 << 30, 1 << 20)],
)
def test_a_brick_weighs_its_gib_in_coarse_steps(gib: int, weight: int) -> None:
    assert weight_of(gib << 30) == weight


def member(node: int, store_id: str | None = None) -> Member:
    store_id = f"s{node}" if store_id is None else store_id
    return Member(node, 10 + node, f"n{node}", f"h:{node}", State.UP, store_id)


def two_in_sync() -> View:
    view = membership.joined(membership.founded("c", 4, 3), member(1))
    view = membership.joined(view, member(2))
    return membership.in_sync(view, 2, 12, range(4)) or view


def application(
    applicant: Applicant = N1, *, former: str = "s1", replaces: int | None = None
) -> Application:
    return Application(IDENTITY, applicant, Registration(1, 99, former), "h:9", replaces)


def heartbeats(*rounds: dict[int, int]) -> Heartbeats:
    beats = Heartbeats(5.0)
    for second, seen in enumerate(rounds):
        beats.observe(seen, float(second))
    return beats


def snapshot(view: View | None, *dropped: int) -> Snapshot:
    return Snapshot(view, {}, frozenset(dropped))


def test_the_first_node_founds_the_view() -> None:
    admission = admit(application(former=""), snapshot(None), heartbeats(), 0.0)
    assert admission is not None
    assert admission.view.epoch == 1
    assert admission.view.in_sync == (0b10,) * 4


def test_a_replica_waits_until_it_knows_whether_its_rival_lives() -> None:
    view = two_in_sync()
    unknown = heartbeats({11: 5, 12: 7})
    assert admit(application(), snapshot(view), unknown, 0.0) is None
    alive = admit(application(), snapshot(view), heartbeats({12: 7}, {12: 8}), 1.0)
    assert alive is not None
    assert alive.view.in_sync == (0b100,) * 4
    assert alive.view.syncing == (0b010,) * 4
    assert not alive.silent


def test_with_every_rival_dead_the_whole_last_set_must_return() -> None:
    silent = heartbeats(*[{11: 5, 12: 7}] * 8)
    admission = admit(application(), snapshot(two_in_sync()), silent, 7.0)
    assert admission is not None
    assert admission.view.in_sync == (0b110,) * 4
    assert all(admission.view.stopped)
    assert admission.view.member(2) is None
    assert admission.silent == {12}, "it counts only if the rival is silent still"


def test_a_supervisors_word_spares_the_wait() -> None:
    admission = admit(application(), snapshot(two_in_sync(), 12), heartbeats({12: 7}), 0.0)
    assert admission is not None
    assert admission.view.member(2) is None
    assert not admission.silent


def test_a_node_that_shares_no_group_waits_for_nobody() -> None:
    client = Applicant("n3", groups=4)
    asks = Application(IDENTITY, client, Registration(3, 99, ""), "h:9")
    admission = admit(asks, snapshot(two_in_sync()), heartbeats({11: 1, 12: 1}), 0.0)
    assert admission is not None
    assert len(admission.view.members) == 3


def test_a_client_without_a_brick_lock_must_be_silent_before_its_name_is_taken_over() -> None:
    view = membership.joined(two_in_sync(), member(3, ""))
    asks = Application(IDENTITY, Applicant("n3", groups=4), Registration(3, 99, ""), "h:9")
    assert admit(asks, snapshot(view), heartbeats({13: 0}), 0.0) is None
    assert admit(asks, snapshot(view), heartbeats(*[{13: 0}] * 8), 7.0) is not None
    asks = asks._replace(replaces=13)
    assert admit(asks, snapshot(view), heartbeats({13: 0}, {13: 1}), 1.0) is not None


@pytest.mark.parametrize(
    ("applicant", "message"),
    [
        (N1._replace(groups=8), "groups is 8 here, but the cluster was founded with 4"),
        (N1._replace(replicas=2), None),
        (N1._replace(store_epoch=4), "epoch 3, but the brick of n1 has seen 4"),
        (N1._replace(store_id="s2"), "in use as that of node n2"),
        (N1._replace(store_id="new"), None),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(applicant: Applicant, message: str) -> None:
    view, lively = two_in_sync(), heartbeats(*[{11: 0, 12: second} for second in range(8)])
    if message is None:
        assert admit(application(applicant), snapshot(view), lively, 7.0) is not None
        return
    with pytest.raises(SetupError, match=message) as caught:
        admit(application(applicant), snapshot(view), lively, 7.0)
    assert "\n" not in str(caught.value)


def test_a_name_in_use_is_refused() -> None:
    with pytest.raises(SetupError, match="in use by a running daemon at h:1"):
        admit(application(), snapshot(two_in_sync()), heartbeats({11: 5}, {11: 6}), 1.0)


def test_a_new_brick_may_not_stand_in_for_the_one_with_the_last_copy() -> None:
    view = membership.removed(two_in_sync(), {11, 12})
    with pytest.raises(SetupError, match="last copy of 4 groups"):
        admit(application(N1._replace(store_id="new")), snapshot(view), heartbeats(), 0.0)
    assert admit(application(), snapshot(view), heartbeats(), 0.0) is not None


def test_the_cluster_must_be_the_bricks_own() -> None:
    check_identity(IDENTITY, N1, 5.0)
    check_identity(IDENTITY, N1._replace(cluster=""), 5.0)
    with pytest.raises(SetupError, match="belongs to cluster other"):
        check_identity(IDENTITY, N1._replace(cluster="other"), 5.0)
    with pytest.raises(SetupError, match="lease_s"):
        check_identity(IDENTITY, N1, 4.0)
