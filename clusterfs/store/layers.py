"""Records in layers: what is dirty, over what a checkpoint is writing, over the table.

A Family is one kind of record, keyed by an owner (an object, a group) and a key within it. Reading
looks in the dirty layer, then the frozen one, then the table. `freeze` makes the dirty layer the
frozen one in constant time; a worker thread writes that while new changes go to a new dirty layer;
`thaw` drops it once the table has it.

Invariants:
  * a frozen value is never changed: `own` copies it into the dirty layer first;
  * None stands for "removed": it hides what lies below;
  * every value in the table carries a checksum over key and value.
"""

import errno
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

from clusterfs.errors import BrickFailed
from clusterfs.store.format import open_value, seal_value
from clusterfs.store.table import Table

V = TypeVar("V")


# Dicts nobody refers to any more. To free a large one at once would hold all threads for long.
Rubbish = list[dict[Any, Any]]


class Values:
    """A table's values, verified.

    Raises BrickFailed for one that rotted, or cannot be reached, and tells `on_damage`.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.on_damage: Callable[[OSError], None] = lambda _: None

    def get(self, key: bytes) -> bytes | None:
        """Return the key's value in the snapshot."""
        try:
            sealed = self._table.get(key)
        except OSError as error:
            raise self._failed(error) from error
        return None if sealed is None else self._opened(key, sealed)

    def items(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the snapshot's pairs with first <= key < end, in order."""
        try:
            for key, sealed in self._table.items(first, end):
                yield key, self._opened(key, sealed)
        except OSError as error:
            raise self._failed(error) from error

    def keys(self, first: bytes, end: bytes) -> Iterator[bytes]:
        """Yield the snapshot's keys with first <= key < end, in order; no value is looked at."""
        try:
            yield from self._table.keys(first, end)
        except OSError as error:
            raise self._failed(error) from error

    def _opened(self, key: bytes, sealed: bytes) -> bytes:
        value = open_value(key, sealed)
        if value is None:
            text = f"the checkpoint's record {key[:40]!r} is damaged; synchronise the brick anew"
            raise self._failed(OSError(errno.EIO, text))
        return value

    def _failed(self, error: OSError) -> BrickFailed:
        self.on_damage(error)
        return BrickFailed(error.strerror)


class Layer(Generic[V]):
    """The changed records of one owner, by encoded key, sorted when somebody needs the order."""

    __slots__ = ("_sorted", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, V | None] = {}
        self._sorted: list[bytes] = []

    def after(self, key: bytes) -> Iterator[tuple[bytes, V | None]]:
        """Yield what follows `key`, in order."""
        if len(self._sorted) != len(self.values):  # keys never leave a layer
            self._sorted.extend(islice(self.values, len(self._sorted), None))
            self._sorted.sort()
        keys, values = self._sorted, self.values
        for index in range(bisect_right(keys, key), len(keys)):
            yield keys[index], values[keys[index]]


Layers = dict[bytes, Layer[V]]


class Family(Generic[V]):
    """One kind of record in layers over a table."""

    def __init__(
        self,
        values: Values,
        prefix: bytes,
        encode: Callable[[V], bytes],
        decode: Callable[[bytes], V],
        copy: Callable[[V], V] = lambda value: value,
    ) -> None:
        self._values = values
        self._prefix = prefix
        self._encode = encode
        self._decode = decode
        self._copy = copy
        self._dirty: Layers[V] = {}
        self._frozen: Layers[V] = {}
        self.dirty_count = 0

    def get(self, owner: bytes, key: bytes) -> V | None:
        """Return the record, or None. It must not be changed."""
        layer = self._dirty.get(owner)
        if layer is not None and key in layer.values:
            return layer.values[key]
        layer = self._frozen.get(owner)
        if layer is not None and key in layer.values:
            return layer.values[key]
        return self._load(owner + key)

    def put(self, owner: bytes, key: bytes, value: V | None) -> None:
        """Set the record; None removes it."""
        layer = self._dirty.get(owner)
        if layer is None:
            layer = self._dirty[owner] = Layer()
        layer.values[key] = value
        self.dirty_count += 1

    def own(self, owner: bytes, key: bytes) -> V | None:
        """Return the record for changing: it is in the dirty layer, and no other layer has it."""
        layer = self._dirty.get(owner)
        if layer is not None and key in layer.values:
            return layer.values[key]
        frozen = self._frozen.get(owner)
        if frozen is not None and key in frozen.values:
            value = frozen.values[key]
            value = None if value is None else self._copy(value)
        else:
            value = self._load(owner + key)
        if value is not None:
            self.put(owner, key, value)
        return value

    def after(self, owner: bytes, key: bytes, end: bytes) -> Iterator[tuple[bytes, V]]:
        """Yield the owner's records with key < k < end, in order, from all layers."""
        merged: Iterator[tuple[bytes, V | None]] = self._base_after(owner, key, end)
        for layers in (self._frozen, self._dirty):
            layer = layers.get(owner)
            if layer is not None:
                merged = _overlay(merged, layer.after(key))
        for found, value in merged:
            if found >= end:
                return
            if value is not None:
                yield found, value

    def owners(self, owner_bytes: int) -> Iterator[bytes]:
        """Yield every owner that has, or lately had, a record; some twice."""
        last = b""
        for key in self._values.keys(self._prefix, bytes((self._prefix[0] + 1,))):
            owner = key[1 : 1 + owner_bytes]
            if owner != last:
                last = owner
                yield owner
        yield from (*self._frozen, *self._dirty)

    def freeze(self) -> None:
        """Start a new dirty layer over the present one."""
        assert not self._frozen, "the last checkpoint is still being written"
        self._frozen, self._dirty, self.dirty_count = self._dirty, {}, 0

    def frozen_changes(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield the frozen layer as the table's keys and sealed values; runs on a worker thread."""
        for owner, layer in self._frozen.items():
            for key, value in layer.values.items():
                full = self._prefix + owner + key
                yield full, None if value is None else seal_value(full, self._encode(value))

    def thaw(self) -> Rubbish:
        """Forget the frozen layer: the table has it, and has been refreshed."""
        rubbish: Rubbish = [layer.values for layer in self._frozen.values()]
        rubbish.append(self._frozen)
        self._frozen = {}
        return rubbish

    def _load(self, key: bytes) -> V | None:
        value = self._values.get(self._prefix + key)
        return None if value is None else self._decode(value)

    def _base_after(self, owner: bytes, key: bytes, end: bytes) -> Iterator[tuple[bytes, V]]:
        head = self._prefix + owner
        first = head + key + b"\0" if key else head
        for full, value in self._values.items(first, head + end):
            yield full[len(head) :], self._decode(value)


def _overlay(
    lower: Iterator[tuple[bytes, V | None]], upper: Iterator[tuple[bytes, V | None]]
) -> Iterator[tuple[bytes, V | None]]:
    """Merge two sorted streams; where both have a key, the upper one counts."""
    low, high = next(lower, None), next(upper, None)
    while low is not None and high is not None:
        if low[0] < high[0]:
            yield low
            low = next(lower, None)
        else:
            if low[0] == high[0]:
                low = next(lower, None)
            yield high
            high = next(upper, None)
    if low is not None:
        yield low
        yield from lower
    if high is not None:
        yield high
        yield from upper
