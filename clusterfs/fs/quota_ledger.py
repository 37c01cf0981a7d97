"""A quota's ledger: what its limits are, what is used, and what each node may still use. PURE.

The ledger is an object of its own, part 1 of the quota directory's number (directories have no
stripes), in the directory's group. Its keys; all numbers are big endian:

| key                   | value                                                            |
|-----------------------|------------------------------------------------------------------|
| ! (MARK)              | `quota`, so that all ledgers can be listed                       |
| l                     | limits: bytes u64, files u64; 0 is none                          |
| u                     | used, without what nodes have used of their shares: i64, i64     |
| s + incarnation u64   | a node's share: bytes i64, files i64                             |

A node uses and gives back within its share without a word, and says what it used when it gives the
share up. A share of a node that is gone means that nobody knows what it used: the tree must be
counted. Nodes also say so themselves, with a share of the incarnation NOBODY.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from clusterfs.fs.attributes import Record
from clusterfs.store.objects import MARK, Operation, Put, Remove

MARKED = b"quota"
LIMITS = b"l"
USED = b"u"
SHARE = b"s"
NOBODY = 0  # no node is ever of this incarnation

_LIMITS = struct.Struct(">QQ")
_USED = struct.Struct(">qq")
_MOST = (1 << 30, 1 << 16)  # bytes and files that a node takes beyond what it needs


class Amount(NamedTuple):
    """Bytes and files: of limits, of what is used, of a share."""

    nbytes: int = 0
    files: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """Return the sum."""
        return Amount(self.nbytes + other.nbytes, self.files + other.files)

    def minus(self, other: "Amount") -> "Amount":
        """Return the difference."""
        return Amount(self.nbytes - other.nbytes, self.files - other.files)


NOTHING = Amount()


class Ledger(msgspec.Struct):
    """One quota's ledger, as it is stored."""

    limits: Amount = NOTHING
    used: Amount = NOTHING
    shares: dict[int, Amount] = msgspec.field(default_factory=dict)
    stored: dict[bytes, bytes] = msgspec.field(default_factory=dict)  # as it was read

    def free(self) -> Amount:
        """Return what nobody has used or may use; meaningless where there is no limit."""
        free = self.limits.minus(self.used)
        for share in self.shares.values():
            free = free.minus(share)
        return free

    def grant(self, need: Amount, parts: int) -> Amount | None:
        """Return a share that covers `need`, and a part of what is left; None: it is too much.

        What has no limit needs no share: 0.
        """
        granted = []
        for limit, free, wanted, most in zip(self.limits, self.free(), need, _MOST, strict=True):
            if limit and wanted > max(free, 0):
                return None
            granted.append(wanted + min((free - wanted) // parts, most) if limit else 0)
        return Amount(*(max(0, amount) for amount in granted))


def decode(rows: Iterable[tuple[bytes, bytes]]) -> Ledger:
    """Return the ledger that is stored in these keys and values."""
    ledger = Ledger(stored=dict(rows))
    for key, value in ledger.stored.items():
        if key == LIMITS:
            ledger.limits = Amount(*_LIMITS.unpack(value))
        elif key == USED:
            ledger.used = Amount(*_USED.unpack(value))
        elif key.startswith(SHARE):
            ledger.shares[int.from_bytes(key[len(SHARE) :], "big")] = Amount(*_USED.unpack(value))
    return ledger


def encode(ledger: Ledger) -> dict[bytes, bytes]:
    """Return the keys and values of a ledger, without its mark."""
    rows = {LIMITS: _LIMITS.pack(*ledger.limits), USED: _USED.pack(*ledger.used)}
    for incarnation, share in ledger.shares.items():
        rows[SHARE + incarnation.to_bytes(8, "big")] = _USED.pack(*share)
    return rows


def operations(ledger: Ledger) -> tuple[Operation, ...]:
    """Return what makes the stored ledger this one."""
    rows = {**encode(ledger), MARK: MARKED}
    gone = [Remove(key) for key in ledger.stored if key not in rows]
    return (*gone, *(Put(*row) for row in rows.items() if ledger.stored.get(row[0]) != row[1]))


def counted(record: Record) -> Amount:
    """Return what an inode below a quota's directory uses: one file, and a file's size."""
    return Amount(record.size if record.is_regular else 0, 1)
