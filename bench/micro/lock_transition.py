"""Cost of deciding about locks, without network: one event in, its effects out.

Budget: 5 us a transition. A pipelined loopback RPC costs about 20 us, so deciding must stay well
below carrying. These numbers matter per lock request that leaves this node's cache, not per read
or write.
"""

import json
import time
from collections.abc import Callable

from dlm.core.lockspace import LockspaceCore
from dlm.effects import Send
from dlm.events import Acquire, Change, Enter, Event, Lock, Name, Received, Release
from dlm.messages import Granted, Request, Route, Unlock, decode, encode
from dlm.modes import Mode

ROUNDS = 5_000
PASSES = 5
BUDGET_US = 5.0
NAME = Name(b"root", b"leaf")


def alone() -> LockspaceCore:
    """Return a core that masters everything, with one lock that keeps the root."""
    core = LockspaceCore(1, 1)
    core.handle(Enter(1, {1: 1}), 0.0)
    core.handle(Acquire(Lock(Name(b"root")), Mode.NL), 0.0)
    return core


def local_lock_and_unlock() -> float:
    """Return us per transition of a lock mastered here, asked for and dropped."""
    core = alone()

    def pair() -> None:
        lock = Lock(NAME)
        core.handle(Acquire(lock, Mode.EX), 0.0)
        core.handle(Release(lock), 0.0)

    return _us_each(pair) / 2


def remote_lock_and_unlock() -> float:
    """Return us per transition on the master of somebody else's lock."""
    core = alone()
    core.here.members[2] = 2
    term = core.mastery.trees[NAME.root].term
    events: list[tuple[Event, Event]] = [
        (
            Received(2, Request(1, 2, n, *NAME, Mode.EX, 0, "", Route.DIRECT, 2)),
            Received(2, Unlock(term, n, 0, None)),
        )
        for n in range(1, ROUNDS + 1)
    ]
    upcoming = iter(events * PASSES)

    def pair() -> None:
        ask, drop = next(upcoming)
        core.handle(ask, 0.0)
        core.handle(drop, 0.0)

    first, again = events[0]
    [sent] = core.handle(first, 0.0)
    assert isinstance(sent, Send), sent
    assert isinstance(sent.message, Granted), sent
    core.handle(again, 0.0)
    assert len(core.mastery.copies) == 1, "only the lock that keeps the root is left"
    return _us_each(pair) / 2


def convert_down_and_up() -> float:
    """Return us per conversion of a lock mastered here."""
    core = alone()
    lock = Lock(NAME)
    core.handle(Acquire(lock, Mode.EX), 0.0)
    down, up = Change(lock, Mode.PR), Change(lock, Mode.EX)

    def pair() -> None:
        core.handle(down, 0.0)
        core.handle(up, 0.0)

    return _us_each(pair) / 2


def encode_and_decode() -> float:
    """Return us to put a request on the wire and take it off again."""
    request = Request(1, 2, 7, *NAME, Mode.EX, 8, "write", Route.DIRECT)

    def there_and_back() -> None:
        decode(encode(request))

    return _us_each(there_and_back)


def _us_each(work: Callable[[], None]) -> float:
    """Return the best of several means."""
    means = []
    for _ in range(PASSES):
        start_s = time.process_time()
        for _ in range(ROUNDS):
            work()
        means.append((time.process_time() - start_s) / ROUNDS * 1e6)
    return min(means)


if __name__ == "__main__":
    for measure in (
        local_lock_and_unlock,
        remote_lock_and_unlock,
        convert_down_and_up,
        encode_and_decode,
    ):
        print(
            json.dumps(
                {"name": measure.__name__, "us": round(measure(), 2), "budget_us": BUDGET_US}
            )
        )
