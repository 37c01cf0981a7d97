"""Certificates of nodes that were removed for good: refused, though they have not expired.

When a node is forgotten the provider gets the note `revoked/NAME`, the time of the removal, and
every certificate in that name whose validity begins no later counts no more, however many there are
and wherever they lie. A new token makes one that begins later; the note stays for ever.

Invariant: times of one name only rise.
"""

from collections.abc import Collection, Mapping

import structlog
import trio

from clusterfs.cluster.providers import Provider
from clusterfs.errors import ProviderAway

REVOKED = "revoked/"
_EVERY_S = 2.0


class Revoked:
    """What this node knows of removals."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._times: Mapping[str, int] = {}
        self._log = structlog.get_logger(package="cluster")

    async def load(self) -> None:
        """Learn what there is. Raises ProviderAway."""
        times = await read(self._provider)
        for name in times.keys() - self._times.keys():
            self._log.info("certificates revoked", name=name, until_s=times[name])
        self._times = times

    async def keep(self) -> None:
        """Learn of removals until cancelled."""
        while True:
            await trio.sleep(_EVERY_S)
            try:
                await self.load()
            except ProviderAway:
                continue  # what is known counts on; nobody joins meanwhile either

    def refusal(self, names: Collection[str], begins_s: float) -> str | None:
        """Say why a certificate does not count; None: it does.

        begins_s: since when it is valid, seconds since 1970.
        """
        for name in sorted(names):
            if begins_s <= self._times.get(name, -1):
                return f"the certificate of {name} was revoked when {name} was removed"
        return None


async def read(provider: Provider) -> dict[str, int]:
    """Return the time of the last removal by name. Raises ProviderAway."""
    notes = await provider.notes(REVOKED)
    return {note.removeprefix(REVOKED): int(value) for note, value in notes.items()}


async def revoke(provider: Provider, name: str, now_s: float) -> None:
    """Let no certificate count that was made for the name until now. Raises ProviderAway."""
    note = REVOKED + name
    while True:
        former = (await provider.notes(note)).get(note)
        if former is not None and int(former) >= int(now_s):
            return
        if await provider.set_note(note, b"%d" % now_s, former):
            return
