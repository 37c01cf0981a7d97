"""How fast a resync copies, and how far it is."""

import trio

MIB = 1 << 20


class Pace:
    """At most so many bytes a second, evenly; 0: as fast as it goes."""

    def __init__(self, rate_bytes: int) -> None:
        self.rate_bytes = rate_bytes
        self._free_s = 0.0  # until then, what was taken uses up the rate

    async def take(self, nbytes: int) -> None:
        """Wait until these bytes may have been copied."""
        if self.rate_bytes <= 0:
            return
        now_s = trio.current_time()
        self._free_s = max(self._free_s, now_s) + nbytes / self.rate_bytes
        await trio.sleep(self._free_s - now_s)


class Progress:
    """How far one comparison of all objects is."""

    def __init__(self) -> None:
        self.total = self.seen = 0
        self._begun_s = trio.current_time()

    def part(self, needed: int) -> float:
        """Return the part that is done, 0 to 1, while so many objects are being copied."""
        if not self.total:
            return 0.0
        return min(1.0, max(0, self.seen - needed) / max(self.total, self.seen))

    def eta_s(self, needed: int) -> float | None:
        """Return how long the rest takes if it goes on like this; None: not known yet."""
        part = self.part(needed)
        took_s = trio.current_time() - self._begun_s
        return took_s * (1 - part) / part if part and took_s > 0 else None
