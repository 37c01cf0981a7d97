"""One resource under random users with every flag: always settled, and nobody waits for ever."""

import random

import pytest

from dlm.core.master_copy import Copy
from dlm.core.resource import Resource
from dlm.messages import Message
from dlm.modes import Flags, Mode, is_down, may_queue_conversion

REQUESTS = (Flags.NOQUEUE, Flags.HEADQUE, Flags.NOORDER, Flags.ALTPR, Flags.ALTCW)
CONVERSIONS = (Flags.NOQUEUE, Flags.HEADQUE, Flags.NOORDER, Flags.NODLCKWT, Flags.CONVDEADLK)
SEEDS = 250  # in one test
STEPS = 30


def silent(_node: int, _message: Message) -> None:
    pass


class Users:
    """They do anything that the rules for flags allow."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.resource = Resource(b"r", b"", term=1)
        self.asked = 0

    def step(self) -> None:
        copies = tuple(self.resource.copies())
        if not copies or self.random.random() < 0.35:
            self.ask()
            return
        copy = self.random.choice(copies)
        if copy.requested is not None:
            if self.random.random() < 0.3:
                self.resource.cancel(copy, silent)
        elif self.random.random() < 0.6:
            self.convert(copy, self.random.choice(tuple(Mode)))
        else:
            self.resource.unlock(copy, 0, None, silent)

    def ask(self) -> None:
        self.asked += 1
        copy = Copy(1, self.asked, self.resource)
        copy.requested = self.random.choice(tuple(Mode))
        copy.flags = self.some(REQUESTS)
        if copy.requested is Mode.NL and self.random.random() < 0.3:
            copy.flags = int(Flags.EXPEDITE)
        self.resource.request(copy, silent)

    def convert(self, copy: Copy, mode: Mode) -> None:
        assert copy.granted is not None
        if is_down(copy.granted, mode):
            self.resource.demote(copy, mode, 0, None, silent)
            return
        flags = self.some(CONVERSIONS)
        if flags & Flags.CONVDEADLK:
            flags &= ~int(Flags.NOQUEUE)
        if may_queue_conversion(copy.granted, mode):
            flags |= self.some((Flags.QUECVT,))
        if copy.granted <= Mode.CR:
            flags |= self.some((Flags.ALTPR, Flags.ALTCW))
        self.resource.convert(copy, mode, flags, None, silent)

    def some(self, flags: tuple[Flags, ...]) -> int:
        return sum(int(flag) for flag in flags if self.random.random() < 0.2)

    def go(self) -> None:
        """Those who chose to wait in a deadlock withdraw; whoever has got a lock drops it."""
        while self.impatient() or self.resource.granted:
            if copies := self.impatient():
                self.resource.cancel(copies[0], silent)
            else:
                self.resource.unlock(next(iter(self.resource.granted)), 0, None, silent)
            self.resource.validate()

    def impatient(self) -> list[Copy]:
        return [copy for copy in self.resource.converting if copy.flags & Flags.NODLCKWT]


@pytest.mark.parametrize("first", range(0, 2000, SEEDS))
def test_whoever_can_be_granted_is_and_all_get_their_turn(first: int) -> None:
    for seed in range(first, first + SEEDS):
        users = Users(seed)
        for _ in range(STEPS):
            users.step()
            users.resource.validate()
        users.go()
        assert users.resource.empty, (seed, users.resource)
