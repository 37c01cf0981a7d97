"""Repairs that cannot be done now are tried again, and end nothing."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from clusterfs.errors import BrickFailed, FilesystemError, OutOfSpace
from clusterfs.store.objects import ObjectId
from clusterfs.volume.mending import Mender

pytestmark = pytest.mark.trio


class Damaged:
    """A store with a damaged chunk that it cannot do anything about."""

    def __init__(self, error: FilesystemError) -> None:
        self._error = error
        self.tries = 0

    def damaged(self) -> int:
        return 1

    async def damaged_blocks(self, _: int) -> list[tuple[ObjectId, int]]:
        self.tries += 1
        await trio.lowlevel.checkpoint()
        raise self._error


@pytest.mark.parametrize("error", [OutOfSpace("no room"), BrickFailed("it rotted")])
async def test_a_repair_that_fails_is_tried_again(
    error: FilesystemError, autojump_clock: MockClock
) -> None:
    """A checkpoint without room, or one that rotted, ended the daemon."""
    del autojump_clock
    store = Damaged(error)
    site = SimpleNamespace(node=1, view=SimpleNamespace(epoch=1), changed=trio.sleep_forever)
    mender = Mender(cast("Any", site), cast("Any", store))
    with trio.move_on_after(100):
        await mender.run()
    assert store.tries > 1
    assert mender.repaired == 0
