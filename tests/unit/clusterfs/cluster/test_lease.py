from hypothesis import given
from hypothesis import strategies as st

from clusterfs.cluster.lease import Heartbeats, Lease, judge, undecided
from clusterfs.cluster.membership import founded, joined
from clusterfs.cluster.views import Member, State, View


def member(node: int, *, state: State = State.UP) -> Member:
    return Member(node, 10 + node, f"n{node}", "h:1", state, f"s{node}")


def test_a_lease_counts_from_the_sending_and_stays_ended() -> None:
    lease = Lease(5.0, sent_s=100.0)
    assert lease.renewed(sent_s=101.0, now_s=104.0)
    assert 101.9 < 104.0 + lease.left_s(104.0) - 4.0 < 102.0
    assert lease.left_s(106.0) <= 0
    assert not lease.renewed(sent_s=106.0, now_s=106.1)
    assert lease.left_s(103.0) <= 0, "not even if the clock went back"


@given(
    rate=st.floats(0.9951, 1.0049),
    sent=st.floats(0, 10),
    transit=st.floats(0, 3),
    seen_after=st.floats(0, 3),
    lease_s=st.floats(0.1, 60),
)
def test_no_observer_ends_its_wait_before_the_lease_whatever_delays_and_clocks(
    rate: float, sent: float, transit: float, seen_after: float, lease_s: float
) -> None:
    """`rate` is the member's clock against true time; the observer errs the other way."""
    lease = Lease(lease_s, sent * rate)
    heartbeats = Heartbeats(lease_s)
    observer_rate = 2 - rate
    seen = sent + transit + seen_after
    heartbeats.observe({7: 1}, seen * observer_rate)
    step = lease_s / 50
    now = seen
    while not heartbeats.expired(7, now * observer_rate):
        now += step
        heartbeats.watch(now * observer_rate)
    assert lease.left_s(now * rate) <= 0


def test_a_stalled_observer_accuses_nobody() -> None:
    heartbeats = Heartbeats(5.0)
    heartbeats.observe({7: 1}, 0.0)
    heartbeats.observe({7: 1}, 60.0)
    assert not heartbeats.expired(7, 60.0)
    for second in range(61, 66):
        heartbeats.watch(float(second))
    assert not heartbeats.expired(7, 65.0)
    assert heartbeats.expired(7, 65.06)


def test_moving_beats_are_life_and_vanished_members_are_forgotten() -> None:
    heartbeats = Heartbeats(5.0)
    for second in range(20):
        heartbeats.observe({7: second, 8: 0}, float(second))
    assert heartbeats.alive(7)
    assert not heartbeats.alive(8)
    assert not heartbeats.expired(7, 20.0)
    assert heartbeats.expired(8, 20.0)
    assert heartbeats.beats([7, 8, 9]) == {7: 19, 8: 0}
    heartbeats.observe({7: 20}, 20.0)
    assert not heartbeats.expired(8, 20.0)


def watched(beats: dict[int, list[int]], seconds: int) -> Heartbeats:
    heartbeats = Heartbeats(5.0)
    for second in range(seconds):
        at = {i: max(b for b in history if b <= second) for i, history in beats.items()}
        heartbeats.observe(at, float(second))
    return heartbeats


def test_the_verdict_is_leaving_for_the_accused_and_down_for_the_silent() -> None:
    heartbeats = watched({11: list(range(9)), 12: [0], 13: list(range(9))}, 9)
    others = [member(1), member(2), member(3)]
    verdict = judge(others, heartbeats, {11, 12, 99}, (), 8.0)
    assert verdict == (frozenset({11}), frozenset({12}))
    verdict = judge(others, heartbeats, {13}, {13}, 8.0)
    assert verdict == (frozenset(), frozenset({12, 13}))
    assert not judge([member(1, state=State.LEAVING)], heartbeats, {11}, (), 8.0).leaving


def test_a_supervisors_word_spares_the_wait() -> None:
    heartbeats = watched({11: [0]}, 1)
    assert judge([member(1)], heartbeats, (), {11}, 0.1).down == {11}


def test_replicas_that_fall_silent_together_are_removed_together() -> None:
    view: View = founded("c", 4, 3)
    for node in (1, 2):
        view = joined(view, member(node))
    view = joined(view, Member(3, 13, "n3", "h:1", State.UP, ""))
    heartbeats = watched({11: [0], 12: [0, 1, 2]}, 8)
    assert heartbeats.expired(11, 6.0)
    assert not heartbeats.expired(12, 6.0)
    alone = undecided(view, {11}, heartbeats, 6.0)
    assert not alone, "only node 1 is in sync: there is nobody to wait for"
    both = View(view.epoch, "c", 3, view.members, (0b110,) * 4, (0,) * 4, (False,) * 4, (1,) * 4, 1)
    assert undecided(both, {11}, heartbeats, 6.0) == {11}
    assert not undecided(both, {11, 12}, heartbeats, 8.0)
    lively = watched({11: [0], 12: list(range(8))}, 8)
    assert not undecided(both, {11}, lively, 7.1)
