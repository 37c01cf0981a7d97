"""The simulator is worth its keep only if it sees bugs: plant some, and let it find them."""

from collections.abc import Callable

import pytest

from dlm.core import rebuild
from dlm.core.mastery import Mastery
from dlm.core.ownership import Ownership
from dlm.core.recovery import Recovery
from dlm.core.resource import Resource
from dlm.messages import Locks, Remove, Removed
from dlm.sim.run import simulate
from dlm.sim.world import Faults

HOSTILE = Faults(crash_interval_s=0.1, delay_s=0.002)
SEEDS = range(25)


def forget_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ownership, "blocking", lambda *_: None)


def remove_in_spite_of_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(self: Mastery, sender: int, message: Remove) -> None:
        del self.directory[message.root]
        self._here.send(sender, Removed(self._here.epoch, message.root))

    monkeypatch.setattr(Mastery, "remove", remove)


def trust_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "loses_lvb", lambda _copy: False)


def do_not_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    resume = Ownership.resume

    def forgetful(self: Ownership) -> None:
        pending, self.pending = self.pending, {}
        resume(self)
        self.pending = pending

    monkeypatch.setattr(Ownership, "resume", forgetful)


def ignore_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resource, "_conflicts", lambda _self, copy: copy.flags & 1 == 0)


def thaw_without_the_last_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def locks(self: Recovery, sender: int, message: Locks) -> None:
        if self._here.frozen:
            self._reports[sender].append(message)
            self._missing_locks -= {sender} if message.last else set()
            if len(self._missing_locks) <= 1 and self._here.told_epoch == self._here.epoch:
                self._thaw()

    monkeypatch.setattr(Recovery, "locks", locks)


def show_names_that_the_directory_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ownership, "_reveals", lambda _self, _lock: False)


@pytest.mark.parametrize(
    "plant",
    [
        show_names_that_the_directory_does_not_know,
        forget_to_tell,
        remove_in_spite_of_forwards,
        trust_every_value,
        do_not_ask_again,
        ignore_conflicts,
        thaw_without_the_last_report,
    ],
)
def test_the_simulator_finds_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert any(simulate(seed, 5, faults=HOSTILE).violation for seed in SEEDS)
