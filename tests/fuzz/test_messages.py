"""Random, truncated and mutated messages become messages or Malformed, and nothing else.

Structure-aware: right tags with wrong fields get further than noise does. The seed is the bug
report: CLUSTERFS_SEED, and CLUSTERFS_FUZZ_ROUNDS for a longer search.
"""

import os
import random
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from clusterfs.volume.messages import decode_message, decode_request
from dlm.messages import BadMessage, decode_all
from dlm.net.errors import Malformed

SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
ROUNDS = int(os.environ.get("CLUSTERFS_FUZZ_ROUNDS", "8000"))
INTEGERS = (0, 1, -1, 2, 7, 255, 2**16, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))

HUGE = (b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc9\xff\xff")  # lengths

DOORS: dict[str, Callable[[bytes], Any]] = {
    "volume messages": decode_message,
    "volume requests": decode_request,
    "lock messages": decode_all,
}


def value(chance: random.Random, depth: int) -> Any:
    """Return anything that MessagePack can say."""
    kind = chance.randrange(9 if depth else 6)
    if kind < 6:
        return chance.choice(
            (
                chance.choice(INTEGERS),
                chance.randrange(64),
                chance.randbytes(chance.choice((0, 1, 8, 16, 32, 40, 300))),
                chance.choice(("", "n1", "x" * 300, "\0")),
                chance.choice((None, True, False, 0.5, float("nan"), float("inf"))),
            )
        )
    if kind == 6:
        return {chance.randrange(9): value(chance, depth - 1) for _ in range(chance.randrange(4))}
    return [value(chance, depth - 1) for _ in range(chance.randrange(7))]


def message(chance: random.Random) -> bytes:
    """Return a body that begins as a message does, and something wrong in it, mostly."""
    fields = [chance.randrange(64), *(value(chance, 3) for _ in range(chance.randrange(14)))]
    body = bytearray(msgpack.packb(fields))
    how = chance.randrange(6)
    if how == 0:
        del body[chance.randrange(len(body)) :]
    elif how == 1:
        body[chance.randrange(len(body))] = chance.randrange(256)
    elif how == 2:
        body += chance.randbytes(chance.randrange(1, 20))
    elif how == 3:
        body = bytearray(b"\x91" * chance.choice((100, 2000)) + bytes(body))
    elif how == 4:
        body[:1] = chance.choice(HUGE)
    return bytes(body)


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_message_is_malformed(door: str) -> None:
    chance = random.Random(f"{SEED} {door}")
    taken = 0
    for number in range(ROUNDS):
        body = message(chance)
        try:
            DOORS[door](body)
        except (Malformed, BadMessage):
            continue
        except BaseException as other:
            raise AssertionError(f"seed {SEED}, round {number}: {body!r}: {other!r}") from other
        taken += 1
    assert taken < ROUNDS // 2
