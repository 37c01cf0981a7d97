"""The rules that make one view from another, under random histories and a model of the data."""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clusterfs.cluster import membership
from clusterfs.cluster.views import Member, State, View, nodes_of

GROUPS = 5
NODES = (1, 2, 3, 4)


def newcomer(node: int, incarnation: int, *, store: bool = True) -> Member:
    store_id, weight = f"s{node}" if store else "", 1 + (node == 3)
    return Member(node, incarnation, f"n{node}", f"h:{node}", State.UP, store_id, weight)


def cluster_of(*nodes: int, replicas: int = 3) -> View:
    view = membership.founded("c", GROUPS, replicas)
    for node in nodes:
        view = membership.joined(view, newcomer(node, 10 + node))
        view = membership.in_sync(view, node, 10 + node, range(GROUPS)) or view
    view.validate()
    return view


def test_the_first_node_has_everything_and_the_next_must_sync() -> None:
    view = membership.founded("c", GROUPS, 3)
    view = membership.joined(view, newcomer(5, 1))
    assert view.epoch == 1
    assert view.in_sync == (1 << 5,) * GROUPS
    view = membership.joined(view, newcomer(2, 2))
    assert view.in_sync == (1 << 5,) * GROUPS
    assert view.syncing == (1 << 2,) * GROUPS
    assert view.generation == (2,) * GROUPS
    assert view.lock_epoch == 2


def test_a_client_without_a_store_changes_no_group() -> None:
    before = cluster_of(1, 2)
    after = membership.joined(before, newcomer(3, 99, store=False))
    assert after.generation == before.generation
    assert after.lock_epoch == after.epoch


def test_leaving_frees_the_writers_but_keeps_the_locks() -> None:
    before = cluster_of(1, 2, 3)
    after = membership.leaving(before, {12})
    assert after is not None
    assert after.in_sync == (0b1010,) * GROUPS
    assert not after.has(2, 12)
    assert after.lock_epoch == after.epoch
    assert after.lock_epoch_before == before.lock_epoch
    down = membership.removed(after, {12})
    assert down is not None
    assert down.lock_epoch == down.epoch
    assert down.generation == (down.epoch,) * GROUPS


def test_the_last_copy_stops_its_groups_and_they_restart_only_with_it() -> None:
    view = cluster_of(1, 2)
    for incarnation in (12, 11):
        view = membership.removed(view, {incarnation}) or view
    assert view.in_sync == (0b10,) * GROUPS
    assert view.stopped == (True,) * GROUPS
    view = membership.joined(view, newcomer(2, 22))
    assert membership.restarted(view, range(GROUPS)) is None, "node 2 misses what 1 went on with"
    assert view.syncing == (0,) * GROUPS
    view = membership.joined(view, newcomer(1, 21))
    restarted = membership.restarted(view, range(GROUPS))
    assert restarted is not None
    assert restarted.in_sync == (0b10,) * GROUPS
    assert restarted.syncing == (0b100,) * GROUPS
    assert restarted.generation == (restarted.epoch,) * GROUPS


def test_all_replicas_that_die_together_are_needed_together() -> None:
    view = membership.removed(cluster_of(1, 2, 3), {11, 12, 13})
    assert view is not None
    assert view.in_sync == (0b1110,) * GROUPS
    assert all(view.stopped)
    for node in (3, 1):
        view = membership.joined(view, newcomer(node, 20 + node))
        assert not view.present(0)
    view = membership.joined(view, newcomer(2, 22))
    assert view.present(0)
    view = membership.restarted(view, [0, 1])
    assert view is not None
    assert view.stopped == (False, False, True, True, True)


def test_an_operator_may_force_a_restart_without_the_lost_replicas() -> None:
    view = membership.removed(cluster_of(1, 2), {11, 12})
    assert view is not None
    view = membership.joined(view, newcomer(1, 21))
    assert membership.restarted(view, [0]) is None
    forced = membership.given_up(view)
    assert forced is not None
    assert forced.in_sync == (0b10,) * GROUPS
    assert all(forced.stopped), "those that are here must agree first"
    opened = membership.restarted(forced, range(GROUPS))
    assert opened is not None
    assert not any(opened.stopped)
    assert membership.given_up(opened) is None


def test_an_old_copy_counts_only_where_no_newer_one_is_here() -> None:
    view = membership.removed(cluster_of(1, 2), {11}) or cluster_of()
    view = membership.removed(view, {12}) or view
    assert view.in_sync == (0b100,) * GROUPS
    view = membership.joined(view, newcomer(1, 21))
    assert membership.given_up(view) is None
    assert membership.given_up(view, truth=3) is None
    forced = membership.given_up(view, truth=1)
    assert forced is not None
    forced.validate()
    assert forced.in_sync == (0b10,) * GROUPS
    assert membership.restarted(forced, range(GROUPS)) is not None


def test_a_restarted_node_that_was_alone_waits_for_its_own_roll_forward() -> None:
    view = membership.joined(cluster_of(1), newcomer(1, 21))
    assert view.stopped == (True,) * GROUPS
    assert view.present(0)


def test_a_broken_brick_stays_out_until_its_node_starts_again() -> None:
    view = cluster_of(1, 2, 3)
    dropped = membership.replica_dropped(view, 2, 12, None)
    assert dropped is not None
    assert dropped.in_sync == (0b1010,) * GROUPS
    assert dropped.syncing == (0,) * GROUPS
    assert dropped.has(2, 12), "its client stays"
    assert membership.replica_dropped(dropped, 2, 12, None) is None
    again = membership.joined(dropped, newcomer(2, 22))
    assert again.syncing == (0b100,) * GROUPS


def test_a_replica_dropped_from_a_group_syncs_it_again() -> None:
    view = membership.replica_dropped(cluster_of(1, 2), 2, 12, [3])
    assert view is not None
    assert view.syncing == (0, 0, 0, 0b100, 0)
    resync = membership.replica_dropped(view, 2, 12, [3])
    assert resync is not None
    assert resync.syncing == view.syncing
    assert resync.generation[3] == resync.epoch, "what it pulled so far does not count"


def test_the_only_copy_cannot_be_dropped() -> None:
    view = cluster_of(1)
    assert membership.replica_dropped(view, 1, 11, [0]) is None
    broken = membership.replica_dropped(view, 1, 11, None)
    assert broken is not None
    assert broken.in_sync == view.in_sync


def test_an_older_incarnation_can_change_nothing() -> None:
    view = membership.joined(cluster_of(1, 2), newcomer(2, 22))
    assert membership.in_sync(view, 2, 12, range(GROUPS)) is None
    assert membership.replica_dropped(view, 2, 12, None) is None
    assert membership.left(view, 2, 12) is None
    assert membership.leaving(view, {12}) is None


def test_a_group_moves_without_losing_a_copy() -> None:
    view = cluster_of(1, 2, replicas=2)
    view = membership.joined(view, newcomer(3, 13))
    moving = [g for g in range(GROUPS) if view.syncing[g]]
    assert moving, "some group prefers the newcomer"
    assert all(view.in_sync[g] == 0b110 for g in range(GROUPS))
    view = membership.in_sync(view, 3, 13, moving) or view
    for group in moving:
        assert view.in_sync[group].bit_count() == 2
        assert view.in_sync[group] & 0b1000


def test_a_replica_that_was_too_slow_may_return() -> None:
    view = membership.replica_dropped(cluster_of(1, 2), 2, 12, None) or cluster_of()
    assert view.dropped == 0b100
    assert membership.replica_returned(view, 2, 99) is None
    view = membership.replica_returned(view, 2, 12) or view
    view.validate()
    assert view.dropped == 0
    assert view.syncing == (0b100,) * GROUPS
    assert membership.replica_returned(view, 2, 12) is None


def test_placement_moves_only_what_it_must() -> None:
    all_four = tuple((node, 1) for node in (1, 2, 3, 4))
    four = {g: set(membership.replica_set(g, all_four, 2)) for g in range(256)}
    three = {g: set(membership.replica_set(g, all_four[:3], 2)) for g in range(256)}
    assert all(four[g] - {4} <= three[g] for g in range(256))
    share = [sum(node in nodes for nodes in four.values()) for node in (1, 2, 3, 4)]
    assert max(share) < 2 * min(share)


def test_a_share_is_like_the_weight_and_a_change_moves_only_that() -> None:
    nodes = ((1, 100), (2, 100), (3, 200), (4, 400))
    groups = range(4000)
    before = {g: membership.replica_set(g, nodes, 1)[0] for g in groups}
    share = [sum(node == n for node in before.values()) for n in (1, 2, 3, 4)]
    assert all(abs(share[i] - 5 * weight) < 75 for i, (_, weight) in enumerate(nodes))
    heavier = (*nodes[:1], (2, 150), *nodes[2:])
    after = {g: membership.replica_set(g, heavier, 1)[0] for g in groups}
    moved = {after[g] for g in groups if after[g] != before[g]}
    assert moved == {2}


def test_a_retiring_node_stays_until_others_have_what_it_has() -> None:
    view = membership.joined(cluster_of(1, 2, replicas=2), newcomer(3, 13))
    view = membership.in_sync(view, 3, 13, range(GROUPS)) or view
    held = membership.held(view, 1)
    assert held > 0
    retiring = membership.retired(view, 1)
    assert retiring is not None
    assert membership.retired(retiring, 1) is None
    assert retiring.in_sync == view.in_sync, "two copies of everything, all the time"
    assert membership.held(retiring, 1) == held
    view = membership.in_sync(retiring, 3, 13, range(GROUPS)) or retiring
    view = membership.in_sync(view, 2, 12, range(GROUPS)) or view
    assert view.in_sync == (0b1100,) * GROUPS
    assert membership.held(view, 1) == 0
    assert membership.surplus(view, 1) == frozenset()
    back = membership.reinstated(view, 1)
    assert back is not None
    assert membership.held(back, 1) == held


def test_the_last_store_may_retire_but_keeps_its_data() -> None:
    view = membership.retired(cluster_of(1), 1)
    assert view is not None
    assert view.in_sync == (0b10,) * GROUPS
    view = membership.joined(view, newcomer(2, 12))
    view = membership.in_sync(view, 2, 12, range(GROUPS)) or view
    assert view.in_sync == (0b100,) * GROUPS


def test_a_copy_is_surplus_when_all_wanted_replicas_have_it() -> None:
    view = membership.joined(cluster_of(1, 2, replicas=2), newcomer(3, 13))
    assert all(membership.surplus(view, node) == frozenset() for node in (1, 2, 3))
    view = membership.in_sync(view, 3, 13, range(GROUPS)) or view
    for group in range(GROUPS):
        outside = [n for n in (1, 2, 3) if not view.in_sync[group] >> n & 1]
        assert [n for n in (1, 2, 3) if group in membership.surplus(view, n)] == outside
    gone = membership.leaving(view, {13})
    assert gone is not None
    assert all(membership.surplus(gone, node) == frozenset() for node in (1, 2))


def test_who_went_a_short_while_ago_keeps_its_place() -> None:
    before = cluster_of(1, 2, 3, 4)
    after = membership.removed(before, {12}, keep=True)
    assert after is not None
    assert after.away == ((2, 1),)
    assert not any(after.syncing), "nobody copies what it had"
    assert not any(membership.surplus(after, node) for node in (1, 3, 4)), "nor deletes anything"
    back = membership.joined(after, newcomer(2, 99))
    assert back.away == ()
    assert back.syncing == tuple(bits & 1 << 2 for bits in before.in_sync)
    over = membership.missed(after, {2})
    assert over is not None
    assert over.away == ()
    copied = [bool(bits) for bits in over.syncing]
    assert copied == [bool(bits & 1 << 2) for bits in before.in_sync], "now they do"
    assert membership.missed(over, {2}) is None


def test_the_last_copy_is_copied_at_once_and_so_is_what_a_removed_node_had() -> None:
    before = cluster_of(1, 2, 3, 4)
    one = membership.removed(before, {12}, keep=True)
    assert one is not None
    two = membership.removed(one, {13}, keep=True)
    assert two is not None
    alone = [bits.bit_count() == 1 for bits in two.in_sync]
    assert alone == [bool(bits) for bits in two.syncing]
    assert any(alone)
    given_up = membership.retired(one, 2)
    assert given_up is not None
    assert given_up.away == ()
    assert [bool(bits) for bits in given_up.syncing] == [bool(b & 4) for b in before.in_sync]


class AnyHistory(RuleBasedStateMachine):
    """No acknowledged write is missing from the in-sync replicas, whatever happens to the nodes."""

    replicas = 2

    def __init__(self) -> None:
        super().__init__()
        self.view = membership.founded("c", GROUPS, self.replicas)
        self.incarnations = 0
        self.written = [0] * GROUPS
        self.store: dict[tuple[int, int], set[int]] = {}
        self.asked_to_sync = 0

    def adopt(self, view: View | None) -> None:
        if view is None:
            return
        view.validate()
        old = self.view
        assert view.epoch == old.epoch + 1
        for group in range(GROUPS):
            changed = any(
                getattr(old, field)[group] != getattr(view, field)[group]
                for field in ("in_sync", "syncing", "stopped")
            )
            assert not changed or view.generation[group] == view.epoch
        moved = view.members != old.members
        assert moved == (view.lock_epoch == view.epoch)
        assert view.lock_epoch_before == (old.lock_epoch if moved else old.lock_epoch_before)
        for group in range(GROUPS):
            self.check_copies(old, view, group)
        self.view = view

    def check_copies(self, old: View, view: View, group: int) -> None:
        """A copy of a node that stays goes only when all wanted ones are there."""
        stay = view.up_replicas() & ~view.dropped
        lost = old.in_sync[group] & ~view.in_sync[group] & stay
        returned = membership.mask_of(m.node for m in view.members if old.member(m.node) != m)
        if lost & ~returned & ~self.asked_to_sync and not old.stopped[group]:
            wanted = membership.replica_set(group, membership.candidates(view), self.replicas)
            assert all(view.in_sync[group] >> node & 1 for node in wanted)

    @rule(
        node=st.sampled_from(NODES),
        store=st.sampled_from([True, True, True, False]),
        keep=st.booleans(),
    )
    def start(self, node: int, *, store: bool, keep: bool = False) -> None:
        self.incarnations += 1
        store &= node != 4 or self.replicas > 2
        member = newcomer(node, self.incarnations, store=store)
        self.adopt(membership.joined(self.view, member, keep=keep))

    @rule(node=st.sampled_from(NODES), data=st.data(), keep=st.booleans())
    def start_with_dead(self, node: int, data: st.DataObject, *, keep: bool) -> None:
        self.incarnations += 1
        others = sorted(m.incarnation for m in self.view.members)
        dead = data.draw(st.sets(st.sampled_from(others))) if others else set()
        member = newcomer(node, self.incarnations)
        self.adopt(membership.joined(self.view, member, dead, keep=keep))

    @precondition(lambda self: self.view.members)
    @rule(data=st.data(), keep=st.booleans())
    def leave(self, data: st.DataObject, *, keep: bool) -> None:
        some = data.draw(st.sets(st.sampled_from(self.view.members).map(lambda m: m.incarnation)))
        self.adopt(membership.leaving(self.view, some, keep=keep))

    @precondition(lambda self: self.view.members)
    @rule(data=st.data(), keep=st.booleans())
    def die(self, data: st.DataObject, *, keep: bool) -> None:
        some = data.draw(st.sets(st.sampled_from(self.view.members).map(lambda m: m.incarnation)))
        self.adopt(membership.removed(self.view, some, keep=keep))

    @rule(nodes=st.sets(st.sampled_from(NODES)))
    def miss(self, nodes: set[int]) -> None:
        self.adopt(membership.missed(self.view, nodes))

    @precondition(lambda self: self.view.members)
    @rule(data=st.data())
    def resync(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.view.members))
        groups = data.draw(st.sets(st.integers(0, GROUPS - 1)))
        for group in groups:
            if self.view.syncing[group] & 1 << member.node and not self.view.stopped[group]:
                source = next(nodes_of(self.view.in_sync[group]))
                self.held(member.node, group).update(self.held(source, group))
        self.adopt(membership.in_sync(self.view, member.node, member.incarnation, groups))

    @precondition(lambda self: self.view.members)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.view.members))
        groups = data.draw(st.none() | st.sets(st.integers(0, GROUPS - 1)))
        self.asked_to_sync = 1 << member.node
        self.adopt(membership.replica_dropped(self.view, member.node, member.incarnation, groups))
        self.asked_to_sync = 0

    @rule(node=st.sampled_from(NODES), stays=st.booleans())
    def retire(self, node: int, *, stays: bool) -> None:
        change = membership.reinstated if stays else membership.retired
        self.adopt(change(self.view, node))

    @rule(node=st.sampled_from(NODES))
    def trim(self, node: int) -> None:
        """Delete what is of no use at a node."""
        for group in membership.surplus(self.view, node):
            self.held(node, group).clear()

    @precondition(lambda self: self.view.members)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.view.members))
        self.adopt(membership.replica_returned(self.view, member.node, member.incarnation))

    @rule(groups=st.sets(st.integers(0, GROUPS - 1)))
    def restart(self, groups: set[int]) -> None:
        for group in groups:
            if self.view.stopped[group] and self.view.present(group):
                replicas = list(nodes_of(self.view.in_sync[group]))
                union = set().union(*(self.held(node, group) for node in replicas))
                for node in replicas:
                    self.held(node, group).update(union)
        self.adopt(membership.restarted(self.view, groups))

    @rule(group=st.integers(0, GROUPS - 1))
    def write(self, group: int) -> None:
        """Acknowledge a write that every in-sync replica has."""
        if self.view.in_sync[group] and not self.view.stopped[group]:
            self.written[group] += 1
            for node in nodes_of(self.view.in_sync[group] | self.view.syncing[group]):
                self.held(node, group).add(self.written[group])

    @invariant()
    def the_in_sync_replicas_have_everything(self) -> None:
        for group, last in enumerate(self.written):
            everything = set(range(1, last + 1))
            replicas = list(nodes_of(self.view.in_sync[group]))
            if self.view.stopped[group]:
                assert set().union(*(self.held(n, group) for n in replicas)) == everything
            else:
                assert all(self.held(n, group) == everything for n in replicas)

    @invariant()
    def running_groups_reach_all_wanted_stores(self) -> None:
        here, away = membership.present_candidates(self.view), dict(self.view.away)
        for group in range(GROUPS):
            if here and not self.view.stopped[group]:
                have = self.view.in_sync[group] | self.view.syncing[group]
                kept = self.view.in_sync[group].bit_count() > 1
                nodes = membership.candidates(self.view) if kept else here
                wanted = membership.replica_set(group, nodes, self.replicas)
                assert all(have & 1 << n for n in wanted if n not in away)

    def held(self, node: int, group: int) -> set[int]:
        return self.store.setdefault((node, group), set())


TestAnyHistory = AnyHistory.TestCase


class AnyHistoryOfThreeCopies(AnyHistory):
    replicas = 3


TestAnyHistoryOfThreeCopies = AnyHistoryOfThreeCopies.TestCase
TestAnyHistoryOfThreeCopies.settings = settings(max_examples=60, stateful_step_count=30)
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_planted_bug_is_found() -> None:
    """The model notices a rule that counts a syncing replica as in sync."""
    machine = AnyHistory()
    machine.start(1, store=True)
    machine.write(0)
    machine.start(2, store=True)
    machine.view = msgspec.structs.replace(
        machine.view, in_sync=(0b110,) * GROUPS, syncing=(0,) * GROUPS
    )
    try:
        machine.the_in_sync_replicas_have_everything()
    except AssertionError:
        return
    raise AssertionError("the model saw nothing")
