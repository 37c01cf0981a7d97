"""Log lines about peers that may repeat for hours: each sort at most once per interval.

What was held back is counted, and told with the next line of its sort.
"""

import trio
from structlog.typing import FilteringBoundLogger

_SORTS = 1024  # strangers choose their addresses; do not remember each for ever


class Complaints:
    """A log that does not flood."""

    def __init__(self, log: FilteringBoundLogger, every_s: float = 10.0) -> None:
        self._log = log
        self._every_s = every_s
        self._sorts: dict[tuple[str, object], tuple[float, int]] = {}  # quiet until, held back

    def warn(self, event: str, about: object, **fields: object) -> None:
        """Log a warning, unless one of the same event about the same was logged just now."""
        now_s = trio.current_time()
        until_s, held_back = self._sorts.get((event, about), (0.0, 0))
        if now_s < until_s:
            self._sorts[event, about] = (until_s, held_back + 1)
            return
        if len(self._sorts) >= _SORTS:
            self._sorts.clear()
        self._sorts[event, about] = (now_s + self._every_s, 0)
        if held_back:
            fields["held_back"] = held_back
        self._log.warning(event, **fields)
