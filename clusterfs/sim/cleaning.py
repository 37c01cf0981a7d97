"""Cleaning a whole store at once, as no policy would: for tests and benchmarks."""

from clusterfs.store.store import Store


async def clean_all(store: Store) -> None:
    """Have the cleaner move all that lives in the segments now in use, without a pause."""
    for segment in list(store._segments.used):  # noqa: SLF001 - a look behind the door
        await store._cleaner.clean(segment, _no_pause)  # noqa: SLF001


async def _no_pause(_: int) -> None:
    pass
