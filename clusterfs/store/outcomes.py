"""What became of each client's transactions: applied, prepared, decided.

Invariants:
  * a sequence is applied if it is at most the client's stable watermark or in its set;
  * a (client, sequence) is prepared or decided, never both;
  * an object is in at most one prepared transaction.
"""

import struct
from array import array
from typing import Literal

from clusterfs.store.objects import ObjectId
from clusterfs.store.records import Prepared, decode, encode

Outcome = Literal["committed", "aborted"]

_ID = struct.Struct(">QQ")


class Client:
    """The applied sequences of one client incarnation."""

    __slots__ = ("above", "stable")

    def __init__(self, stable: int = 0) -> None:
        self.stable = stable
        self.above: set[int] = set()

    def has(self, sequence: int) -> bool:
        """Tell whether that transaction is applied."""
        return sequence <= self.stable or sequence in self.above


class Outcomes:
    """All clients the store remembers."""

    def __init__(self) -> None:
        self.clients: dict[int, Client] = {}
        self.prepared: dict[tuple[int, int], Prepared] = {}
        self.decided: dict[tuple[int, int], bool] = {}
        self.locked: dict[ObjectId, tuple[int, int]] = {}
        self._changed: set[bytes] = set()
        self._changed_clients: set[int] = set()

    def applied(self, client: int, sequence: int) -> bool:
        """Tell whether that transaction is applied."""
        known = self.clients.get(client)
        return known is not None and (sequence <= known.stable or sequence in known.above)

    def add(self, client: int, sequence: int) -> None:
        """Remember that it is."""
        known = self.clients.get(client)
        if known is None:
            known = self.clients[client] = Client()
        known.above.add(sequence)
        self._changed_clients.add(client)

    def set_stable(self, client: int, sequence: int) -> None:
        """Every sequence up to this one is applied everywhere."""
        known = self.clients.setdefault(client, Client())
        if sequence > known.stable:
            for number in [n for n in known.above if n <= sequence]:
                known.above.remove(number)
            known.stable = sequence
            self._changed_clients.add(client)

    def forget_client(self, client: int) -> None:
        """Forget all about a client; its prepared transactions must be decided."""
        assert not any(key[0] == client for key in self.prepared), "a prepared transaction is open"
        if self.clients.pop(client, None) is not None:
            self._changed_clients.add(client)
        self.forget_outcomes(client, 1 << 63)

    def prepare(self, transaction: Prepared) -> None:
        """Remember a prepared transaction and lock its objects."""
        key = (transaction.client, transaction.sequence)
        self.prepared[key] = transaction
        for change in transaction.changes:
            self.locked[change.object_id] = key
        self._changed.add(_prepared_key(*key))

    def decide(self, client: int, sequence: int, *, committed: bool) -> Prepared | None:
        """Record the outcome; return the prepared transaction if there is one."""
        key = (client, sequence)
        transaction = self.prepared.pop(key, None)
        if transaction is not None:
            for change in transaction.changes:
                del self.locked[change.object_id]
            self._changed.add(_prepared_key(*key))
        self.decided[key] = committed
        self._changed.add(_decided_key(*key))
        return transaction

    def outcome(self, client: int, sequence: int) -> Outcome | None:
        """Return what was decided, or None."""
        committed = self.decided.get((client, sequence))
        return None if committed is None else "committed" if committed else "aborted"

    def forget_outcomes(self, client: int, below: int) -> None:
        """Forget the client's outcomes with a sequence below this one."""
        for key in [key for key in self.decided if key[0] == client and key[1] < below]:
            del self.decided[key]
            self._changed.add(_decided_key(*key))

    # -- checkpoint

    def take_changes(self) -> list[tuple[bytes, bytes | None]]:
        """Return the table's records that changed since the last call."""
        self._changed.update(map(_client_key, self._changed_clients))
        changes = [(key, self._encode(key)) for key in self._changed]
        self._changed.clear()
        self._changed_clients.clear()
        return changes

    def _encode(self, key: bytes) -> bytes | None:
        first, second = _ID.unpack(key[1:])
        if key[:1] == b"A":
            client = self.clients.get(first)
            return None if client is None else _numbers(client)
        if key[:1] == b"P":
            transaction = self.prepared.get((first, second))
            return None if transaction is None else encode(transaction)
        committed = self.decided.get((first, second))
        return None if committed is None else bytes((committed,))

    def load(self, key: bytes, value: bytes) -> None:
        """Take over one record of the table."""
        first, second = _ID.unpack(key[1:])
        if key[:1] == b"A":
            numbers = array("Q", value)
            client = self.clients[first] = Client(numbers[0])
            client.above.update(numbers[1:])
        elif key[:1] == b"P":
            transaction = decode(value)
            assert isinstance(transaction, Prepared)
            self.prepare(transaction)
            self._changed.clear()
        else:
            self.decided[first, second] = bool(value[0])


PREFIXES = (b"A", b"P", b"D")


def _client_key(client: int) -> bytes:
    return b"A" + _ID.pack(client, 0)


def _prepared_key(client: int, sequence: int) -> bytes:
    return b"P" + _ID.pack(client, sequence)


def _decided_key(client: int, sequence: int) -> bytes:
    return b"D" + _ID.pack(client, sequence)


def _numbers(client: Client) -> bytes:
    return array("Q", [client.stable, *sorted(client.above)]).tobytes()
