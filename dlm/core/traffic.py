"""How often each node asks for locks in each tree mastered here. PURE."""

from dlm.core.situation import Situation

PERIOD_S = 1.0  # in which requests are counted before somebody looks


class Traffic:
    """Requests and conversions since the last look, by root and node."""

    __slots__ = ("counting", "counts", "since_s")

    def __init__(self) -> None:
        self.counting = False
        self.counts: dict[bytes, dict[int, int]] = {}
        self.since_s = float("-inf")  # the last look, or the first request after it

    def note(self, root: bytes, node: int, here: Situation) -> None:
        """Count one request."""
        counts = self.counts.get(root)
        if counts is None:
            if not self.counts:
                if self.since_s + PERIOD_S < here.now_s:
                    self.since_s = here.now_s
                here.wake(self.since_s + PERIOD_S)
            counts = self.counts[root] = {}
        counts[node] = counts.get(node, 0) + 1
