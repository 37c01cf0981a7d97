"""A log that does not flood, and does not hide."""

from typing import Any

import trio
import trio.testing

from dlm.net.complaints import Complaints


class Lines:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


async def test_each_sort_is_logged_once_per_interval_with_what_was_held_back(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001
) -> None:
    log = Lines()
    complaints = Complaints(log, every_s=10)  # type: ignore[arg-type]
    for _ in range(5):
        complaints.warn("refused", 1, node=1)
        complaints.warn("refused", 2, node=2)
    assert log.lines == [("refused", {"node": 1}), ("refused", {"node": 2})]
    await trio.sleep(11)
    complaints.warn("refused", 1, node=1)
    assert log.lines[2:] == [("refused", {"node": 1, "held_back": 4})]


async def test_strangers_do_not_fill_the_memory() -> None:
    complaints = Complaints(Lines())  # type: ignore[arg-type]
    for n in range(5000):
        complaints.warn("refused", n)
    assert len(complaints._sorts) <= 1024
