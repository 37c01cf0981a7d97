"""What the operations of one mount work with, put together once and handed to each of them."""

from collections.abc import Callable

import msgspec

from clusterfs.fs.access_times import AccessTimes
from clusterfs.fs.coherence import Coherence
from clusterfs.fs.endangered import Endangered
from clusterfs.fs.events import Events
from clusterfs.fs.gate import Gate
from clusterfs.fs.inodes import Inodes
from clusterfs.fs.lock_cache import LockCache
from clusterfs.fs.ports import Volume
from clusterfs.fs.quotas import Quotas
from clusterfs.fs.transactions import Transactions
from clusterfs.fs.writeback import Writeback


class Parts(msgspec.Struct, frozen=True):
    """One mount's machinery."""

    volume: Volume
    gate: Gate
    locks: LockCache
    inodes: Inodes
    transactions: Transactions
    writeback: Writeback
    coherence: Coherence
    endangered: Endangered
    quotas: Quotas
    events: Events
    access_times: AccessTimes
    now_ns: Callable[[], int]
