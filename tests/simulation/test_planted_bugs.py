"""The simulator is worth its keep only if it sees bugs: plant some, and let it find them."""

from collections.abc import Callable

import pytest

from dlm.core import resource
from dlm.core.directory import Directory
from dlm.core.ownership import Ownership
from dlm.core.recovery import Recovery
from dlm.core.resource import Resource
from dlm.core.situation import Situation
from dlm.core.succession import Succession
from dlm.messages import Remove, Removed, Seats
from dlm.sim.run import simulate
from dlm.sim.world import Faults

HOSTILE = Faults(crash_interval_s=0.1, delay_s=0.002)
SEEDS = range(150)


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


@pytest.mark.parametrize(
    "plant",
    [
        show_names_that_the_directory_does_not_know,
        forget_to_tell,
        remove_in_spite_of_forwards,
        trust_every_value,
        do_not_ask_again,
        ignore_conflicts,
        rebuild_without_the_last_page,
        rebuild_while_somebody_is_leaving,
    ],
)
def test_the_simulator_finds_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert any(simulate(seed, 5, faults=HOSTILE).violation for seed in SEEDS)
