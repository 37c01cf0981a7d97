"""The simulator is worth its keep only if it sees bugs: plant some, and let it find them."""

import re
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from dlm.core import conversion_deadlock, deadlock, mastery, migration, resource
from dlm.core.deadlock import Detector
from dlm.core.departure import Departure
from dlm.core.directory import Directory
from dlm.core.holding import Holding
from dlm.core.master_copy import Copy
from dlm.core.mastery import Mastery
from dlm.core.migration import Migration
from dlm.core.own_lock import Root
from dlm.core.ownership import Ownership
from dlm.core.recovery import Recovery
from dlm.core.resource import Resource, Send
from dlm.core.situation import Situation
from dlm.core.succession import Succession
from dlm.effects import Complete
from dlm.events import Wait
from dlm.messages import Chase, Denied, Hop, Record, Remove, Removed, Seats
from dlm.modes import Mode
from dlm.moving import Frozen, Handover
from dlm.sim.faults import Faults
from dlm.sim.run import short_life, simulate

HOSTILE = Faults(crash_interval_s=0.1, delay_s=0.002)
GATED = Faults(crash_interval_s=0.05, delay_s=0.0005, absence_s=0.005, gate_s=0.1)
SEEDS = range(200)


def forget_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ownership, "blocking", lambda *_: None)


def remove_in_spite_of_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(self: Directory, sender: int, message: Remove) -> None:
        self.entries.pop(message.root, None)
        self._here.send(sender, Removed(self._here.epoch, message.root, message.term))

    monkeypatch.setattr(Directory, "remove", remove)


def trust_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "loses_lvb", lambda _copy: False)


def do_not_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Succession, "_resume", lambda *_: None)


def ignore_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resource, "_conflicts", lambda _self, copy: copy.flags & 1 == 0)


def rebuild_without_the_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    seats = Recovery.seats

    def hasty(self: Recovery, sender: int, message: Seats) -> None:
        if len(self._missing) == 2 and message.last and message.epoch == self._here.epoch:
            self._missing.clear()
        seats(self, sender, message)

    monkeypatch.setattr(Recovery, "seats", hasty)


def rebuild_while_somebody_is_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: Situation, node: int, incarnation: int) -> bool:
        return self.members.get(node) != incarnation

    monkeypatch.setattr(Situation, "gone", hasty)


def show_names_that_the_directory_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ownership, "_reveals", lambda _self, _lock: False)


def bury_before_the_gate_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mastery, "WRITERS", ())


def master_names_before_the_gate_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    surely_new = Directory._surely_new

    def hasty(self: Directory, root: bytes) -> bool:
        gate, self._here.gate = self._here.gate, lambda *_: True
        found = surely_new(self, root)
        self._here.gate = gate
        return found

    monkeypatch.setattr(Directory, "_surely_new", hasty)


def rebuild_before_the_gate_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    adopt = Recovery._adopt

    def hasty(self: Recovery) -> Iterator[None]:
        gate, self._here.gate = self._here.gate, lambda *_: True
        yield from tuple(adopt(self))
        self._here.gate = gate

    monkeypatch.setattr(Recovery, "_adopt", hasty)


def forget_whom_the_gate_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A root without a master is taken for a new one if the members change once more."""
    enter = Recovery.enter

    def hasty(self: Recovery, *, skipped: bool) -> None:
        enter(self, skipped=skipped)
        self._directory.unsettled.clear()

    monkeypatch.setattr(Recovery, "enter", hasty)


def skip_the_purge(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dead held stays."""
    monkeypatch.setattr(Mastery, "left", lambda *_: None)


def forget_a_waiter_in_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    records = Succession.records

    def fewer(self: Succession, root: bytes) -> Iterator[Record]:
        return (record for record in records(self, root) if record.granted is not None)

    monkeypatch.setattr(Succession, "records", fewer)


def forget_what_came_after_the_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release between the telling of a lock and the word of its new master is lost."""
    begin = Succession._begin_reign

    def hasty(self: Succession, known: Root, *arguments: object) -> None:
        known.log.clear()
        known.marks = dict.fromkeys(known.marks, 0)
        begin(self, known, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Succession, "_begin_reign", hasty)


def lose_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Resource._write_lvb

    def forgetful(self: Resource, flags: int, lvb: bytes | None) -> None:
        before = self.lvb
        write(self, flags, lvb)
        self.lvb = before or self.lvb

    monkeypatch.setattr(Resource, "_write_lvb", forgetful)


def answer_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = Ownership.denied

    def insistent(self: Ownership, sender: int, message: Denied) -> None:
        lock = self.pending.get(message.lock)
        denied(self, sender, message)
        if lock is not None:
            self._here.effects.append(Complete(lock, message.status))

    monkeypatch.setattr(Ownership, "denied", insistent)


def remember_what_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that has been granted anew is not told again that it is in the way."""
    grant = Resource._grant

    def grudging(self: Resource, copy: Copy, send: Send) -> None:
        told = copy.highbast
        grant(self, copy, send)
        copy.highbast = told

    monkeypatch.setattr(Resource, "_grant", grudging)
    monkeypatch.setattr(Resource, "validate", lambda *_arguments, **_words: None)


def overlook_conversion_deadlocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion_deadlock, "opponent", lambda *_: None)


def leave_those_behind_a_cancelled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, settle = Resource.cancel, Resource.settle

    def lazy(self: Resource, copy: Copy, send: Send) -> bool:
        monkeypatch.setattr(Resource, "settle", lambda *_args, **_words: None)
        gone = cancel(self, copy, send)
        monkeypatch.setattr(Resource, "settle", settle)
        return gone

    monkeypatch.setattr(Resource, "cancel", lazy)


def forget_what_converts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that waits for a stronger mode no longer excludes others by the one it has."""
    conflicts = Resource._conflicts

    def partial(self: Resource, copy: Copy) -> bool:
        held, self._held = self._held, list(self._held)
        for other in self.converting:
            assert other.granted is not None
            if other is not copy:
                self._held[other.granted] -= 1
        try:
            return conflicts(self, copy)
        finally:
            self._held = held

    monkeypatch.setattr(Resource, "_conflicts", partial)


def give_way_without_confirming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phantoms: what the first round saw at different times is taken for one moment."""

    def rash(self: Detector, cycle: tuple[Hop, ...], _at: int) -> None:
        if (cycle[0].kind, cycle[0].number) in self._here.waits.by_key:
            self._give_up(cycle)

    monkeypatch.setattr(Detector, "_confirm_at_home", rash)


def let_everybody_on_the_cycle_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = Detector._goes_on

    def whoever(self: Detector, message: Chase, wait: Wait) -> bool:
        first = replace(message.path[0], priority=-(2**31))  # outranked by all
        return goes_on(self, replace(message, path=(first, *message.path[1:])), wait)

    monkeypatch.setattr(Detector, "_goes_on", whoever)


def overlook_who_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missed edge: one that waits behind another also waits for what keeps that one."""
    monkeypatch.setattr(Resource, "_queued_before", lambda *_: iter(()))


def search_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlock, "SEARCH_EVERY_S", 1e6)


def do_not_ask_the_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Directory, "_left_to_the_maker", lambda _self, _request: False)


def forget_what_was_postponed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Holding, "tick", Holding.clear)


# -- while trees move


def forget_a_waiter_in_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Migration.handover

    def careless(self: Migration, sender: int, message: Handover) -> None:
        held = tuple(copy for copy in message.copies if copy.granted is not None)
        take(self, sender, replace(message, copies=held))

    monkeypatch.setattr(Migration, "handover", careless)


def lose_the_values_in_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Migration.handover

    def careless(self: Migration, sender: int, message: Handover) -> None:
        worths = tuple(replace(worth, lvb=b"stale") for worth in message.worths)
        take(self, sender, replace(message, worths=worths))

    monkeypatch.setattr(Migration, "handover", careless)


def forget_that_a_lock_converts_in_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Migration.handover

    def careless(self: Migration, sender: int, message: Handover) -> None:
        copies = tuple(
            copy if copy.granted is None else replace(copy, requested=None, sequence=0)
            for copy in message.copies
        )
        take(self, sender, replace(message, copies=copies))

    monkeypatch.setattr(Migration, "handover", careless)


def believe_that_all_holders_were_told_in_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who begins to wait after the move keeps waiting: nobody tells those in the way."""
    take = Migration.handover

    def careless(self: Migration, sender: int, message: Handover) -> None:
        copies = tuple(replace(copy, told=Mode.EX) for copy in message.copies)
        take(self, sender, replace(message, copies=copies))

    monkeypatch.setattr(Migration, "handover", careless)
    monkeypatch.setattr(Resource, "validate", lambda *_arguments, **_words: None)


def grant_after_the_handover(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old master goes on as if the tree were still there."""
    let_go = Migration._let_go

    def stubborn(self: Migration, departure: Departure) -> None:
        tree = departure.tree
        let_go(self, departure)
        del self._mastery.departures[tree.root]
        self._mastery.install(tree)
        self._recovery.add_chore(self._mastery.thaw(tree, recover=False))

    monkeypatch.setattr(Migration, "_let_go", stubborn)


def grant_while_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mastery, "_is_frozen", lambda _self, _copy: False)


def forget_to_tell_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was the master forgets that at once; nobody says who is."""
    let_go = Migration._let_go

    def silent(self: Migration, departure: Departure) -> None:
        let_go(self, departure)
        del self._mastery.departures[departure.tree.root]

    monkeypatch.setattr(Migration, "_let_go", silent)


def serve_before_the_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "PAGE", 1)
    take = Migration.handover

    def hasty(self: Migration, sender: int, message: Handover) -> None:
        if message.root not in self._mastery.trees:
            take(self, sender, replace(message, last=True, owners=()))

    monkeypatch.setattr(Migration, "handover", hasty)


def hand_over_before_all_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = Migration.frozen

    def hasty(self: Migration, sender: int, message: Frozen) -> None:
        departure = self._mastery.departures.get(message.root)
        if departure is not None and departure.term == message.term:
            departure.owners = dict.fromkeys(departure.owners, True)
        frozen(self, sender, message)

    monkeypatch.setattr(Migration, "frozen", hasty)


def consent_to_a_dead_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner falls silent for one that it saw die, and nobody is told its locks any more."""
    frozen = Migration.frozen

    def deaf(self: Migration, sender: int, message: Frozen) -> None:
        frozen(self, sender, replace(message, consents=True))

    monkeypatch.setattr(Migration, "frozen", deaf)
    monkeypatch.setattr(Recovery, "_is_lost", _master_is_gone)


def _master_is_gone(recovery: Recovery, known: Root) -> bool:
    return recovery._here.gone(known.master, known.incarnation)


MIGRATION_PLANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (forget_a_waiter_in_migration, "never answered"),
    (forget_that_a_lock_converts_in_migration, "never answered"),
    (believe_that_all_holders_were_told_in_migration, "never answered"),
    (lose_the_values_in_migration, "stale LVB"),
    (grant_after_the_handover, ""),
    (grant_while_frozen, ""),
    (forget_to_tell_the_directory, ""),
    (serve_before_the_last_page, ""),
    (hand_over_before_all_are_silent, ""),
    (consent_to_a_dead_target, ""),
]


@pytest.mark.parametrize(
    ("plant", "complaint"), MIGRATION_PLANTS, ids=[plant.__name__ for plant, _ in MIGRATION_PLANTS]
)
def test_the_simulator_finds_a_bug_planted_in_migration(
    plant: Callable[[pytest.MonkeyPatch], None], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in SEEDS:
        outcome = short_life(seed, migrations=True)
        if outcome.violation is not None:
            assert re.search(complaint, outcome.violation), outcome.violation
            return
    raise AssertionError("it was not found")


PLANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], bool, str]] = [
    # what is planted, whether among transactions, what the simulator says to it
    (forget_to_tell, False, "never answered"),
    (show_names_that_the_directory_does_not_know, False, ""),
    (do_not_ask_the_maker, False, ""),
    (forget_what_was_postponed, False, "never answered"),
    (remove_in_spite_of_forwards, False, ""),
    (trust_every_value, False, "its writer died|stale LVB"),
    (do_not_ask_again, False, "never answered"),
    (ignore_conflicts, False, "exclusion|validate|never answered"),
    (rebuild_without_the_last_page, False, ""),
    (rebuild_while_somebody_is_leaving, False, ""),
    (skip_the_purge, False, ""),
    (forget_a_waiter_in_recovery, False, ""),
    (forget_what_came_after_the_telling, False, ""),
    (lose_a_value, False, "stale LVB"),
    (answer_twice, False, "completed without a request"),
    (remember_what_was_told, False, "never answered"),
    (overlook_conversion_deadlocks, False, "never answered"),
    (leave_those_behind_a_cancelled_one, False, "validate|never answered"),
    (forget_what_converts, False, "exclusion|validate"),
    (give_way_without_confirming, True, "a false victim"),
    (let_everybody_on_the_cycle_give_way, True, "two victims"),
    (overlook_who_goes_first, True, "a deadlock was missed|never answered"),
    (search_only_once, True, "a deadlock was missed|never answered"),
]


@pytest.mark.parametrize(
    ("plant", "transactions", "complaint"), PLANTS, ids=[plant.__name__ for plant, *_ in PLANTS]
)
def test_the_simulator_finds_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    transactions: bool,
) -> None:
    plant(monkeypatch)
    for seed in SEEDS:
        outcome = simulate(seed, 5, 0.6, HOSTILE, transactions=transactions)
        if outcome.violation is not None:
            assert re.search(complaint, outcome.violation), outcome.violation
            return
    raise AssertionError("it was not found")


@pytest.mark.parametrize(
    "plant",
    [
        bury_before_the_gate_opens,
        master_names_before_the_gate_opens,
        rebuild_before_the_gate_opens,
        forget_whom_the_gate_kept_waiting,
    ],
)
def test_it_finds_what_is_used_before_its_gate_has_opened(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = (simulate(seed, 4, 0.3, GATED, calm_s=0.05).violation for seed in SEEDS)
    violation = next(violation for violation in found if violation is not None)
    assert re.search("before its gate|exclusion|two masters|never answered", violation), violation
