"""copy_file_range: blocks of one file become blocks of another without their data being moved.

What lies on the block grid of both files is shared: one transaction for a call, of up to
SHARED_STRIPES that exist, lets the target's stripes refer to the source's chunks, at each replica
by itself: whole stripes by one reference each (store/whole_maps.py), parts of them by the map page.
It changes the versions of the source's stripes too, so no replica can share another state of them.
Where neither file has a stripe, nothing is done. The edges that fill no block are copied, and so is
what cannot be shared: other distances between source and target than whole blocks, stripes whose
groups have other replicas, files with atomic_fsync. A call may do less than it was asked for; its
caller goes on, as with any copy_file_range. Only `clone_held` takes a whole file as it is at one
moment: its caller lets nobody else in.

An empty target takes over the source's placement, so that its stripes have the same replicas.
"""

import os
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple

from clusterfs.errors import FileTooLarge, InvalidArgument, NotSupported
from clusterfs.fs.attributes import MAXIMUM_SIZE, blocks_of
from clusterfs.fs.files import Files
from clusterfs.fs.handles import OpenFile
from clusterfs.fs.inodes import Inode, Stripe, exclude_all
from clusterfs.fs.parts import Parts
from clusterfs.fs.results import Caller
from clusterfs.fs.transactions import Edit
from clusterfs.fs.truncation import stripes_of
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    STRIPE_BYTES,
    Change,
    Discard,
    ObjectId,
    Operation,
    Share,
)
from dlm.errors import LockLost

SHARED_STRIPES = 128  # by one transaction; of those that exist
COPIED_BYTES = 1 << 20  # by one call, of what cannot be shared


class Run(NamedTuple):
    """Blocks of one stripe of the source, and where they go in one stripe of the target."""

    source: Stripe
    source_first: int
    target: Stripe
    first: int
    blocks: int


_ROOT = Caller()


class Job(NamedTuple):
    """What one call is to do; the ranges lie within the source, and do not overlap."""

    source: Inode
    source_offset: int
    target: OpenFile
    target_offset: int
    length: int
    stripes: frozenset[int] | None = None  # those that the source has, if that is known

    def after(self, done: int) -> "Job":
        """Return what is left."""
        return self._replace(
            source_offset=self.source_offset + done,
            target_offset=self.target_offset + done,
            length=self.length - done,
        )

    def up_to(self, length: int) -> "Job":
        """Return the beginning of it."""
        return self._replace(length=min(self.length, length))


class Cloning:
    """Copies ranges between open files."""

    def __init__(self, parts: Parts, files: Files) -> None:
        self._files = files
        self._volume = parts.volume
        self._gate = parts.gate
        self._transactions = parts.transactions
        self._writeback = parts.writeback
        self._coherence = parts.coherence
        self._access_times = parts.access_times
        self._now_ns = parts.now_ns
        self.shared_blocks = self.copied_bytes = 0

    async def copy_range(
        self,
        source: int,
        source_offset: int,
        target: int,
        target_offset: int,
        length: int,
        caller: Caller = _ROOT,
    ) -> int:
        """Copy between two handles; returns how many bytes, 0 at the end of the source.

        Raises:
            InvalidArgument: ranges of one file overlap.
            NotSupported: a handle is in an atomic transaction.
        """
        handles = self._files.handles
        opened, sink = handles.file(source), handles.file(target)
        sink.require_alive()
        if opened.staged is not None or sink.staged is not None:
            raise NotSupported("a handle is in an atomic transaction")
        if source_offset < 0 or target_offset < 0 or length < 0:
            raise InvalidArgument
        job = Job(opened.inode, source_offset, sink, target_offset, length)
        done = await self._gate.run(partial(self._copy, job, caller))
        if sink.inode.pages_possible and done:
            await self._coherence.drop_range(sink.inode, target_offset, done)
        return done

    async def clone_held(self, source: Inode, target: Inode) -> int:
        """Copy all of a file into an empty one; both are used exclusively, their records loaded."""
        record = await self._files.load_for_change(source)
        stripes = await self._stripes(source, target, record.size)
        sink = OpenFile(0, target, os.O_RDWR, privileged=True)
        job = Job(source, 0, sink, 0, record.size, stripes)
        while job.length:
            job = job.after(await self._copy_held(job))
        return record.size

    async def _copy(self, job: Job, caller: Caller) -> int:
        source, target = job.source, job.target.inode
        async with AsyncExitStack() as stack:
            await exclude_all(stack, [source, target])
            job.target.require_alive()
            record = await self._files.load_for_change(source)
            await self._files.load_for_change(target)
            job = job.up_to(max(0, record.size - job.source_offset))
            if job.target_offset + job.length > MAXIMUM_SIZE:
                raise FileTooLarge
            if source is target and abs(job.source_offset - job.target_offset) < job.length:
                raise InvalidArgument("the ranges overlap")
            done = 0
            if job.length:
                stripes = await self._stripes(source, target, job.length)
                done = await self._copy_held(job._replace(stripes=stripes))
            self._access_times.note(source)
            self._files.changed_by(target, lambda: caller)
            return done

    async def _stripes(self, source: Inode, target: Inode, length: int) -> frozenset[int] | None:
        """Return which stripes a source has; None: asking is not worth it.

        Both are locked, so the versions of all stripes of both are known from then on.
        """
        if length <= 2 * STRIPE_BYTES:
            return None
        await self._writeback.flush(source)
        await self._writeback.flush(target)
        self._take_placement(source, target)
        await self._learn(target)
        return await self._learn(source)

    async def _learn(self, inode: Inode) -> frozenset[int]:
        """Learn which stripes a file has, and their versions, by one question."""
        stamp = inode.lock.stamp
        listed = await self._volume.stripes(inode.number)
        if inode.lock.stamp != stamp:
            raise LockLost  # what we know of the inode was dropped while we waited
        for number, group, version in listed:
            stripe = inode.stripe(number)
            if stripe.version is None and stripe.group == group:
                stripe.version = version
        return frozenset(number for number, _, _ in listed)

    async def _copy_held(self, job: Job) -> int:
        """Copy the edge before the first whole block, share, copy the edge behind the last one."""
        head = -job.source_offset % BLOCK_BYTES
        if not _on_one_grid(job) or head >= job.length or not self._may_share(job):
            return await self._copy_bytes(job.up_to(COPIED_BYTES))
        done = await self._copy_bytes(job.up_to(head)) if head else 0
        shared = await self._share(job.after(done))
        done += shared
        rest = job.after(done)
        if not shared or (rest.length and rest.length < BLOCK_BYTES):
            done += await self._copy_bytes(rest.up_to(COPIED_BYTES))
        return done

    def _may_share(self, job: Job) -> bool:
        """Tell whether both files may be committed at any time."""
        records = job.source.record, job.target.inode.record
        return not any(record is None or record.atomic_fsync for record in records)

    async def _copy_bytes(self, job: Job) -> int:
        data = await self._files.read_held(job.source, job.source_offset, job.length)
        if data:
            await self._files.write_held(job.target, job.target_offset, data)
        self.copied_bytes += len(data)
        return len(data)

    # -- sharing

    async def _share(self, job: Job) -> int:
        """Share the whole blocks at the beginning of a job; returns how many bytes that were."""
        source, target = job.source, job.target.inode
        await self._writeback.flush(source)
        await self._writeback.flush(target)
        self._take_placement(source, target)
        runs, blocks = self._runs(job)
        if not blocks:
            return 0
        done = min(job.length, blocks * BLOCK_BYTES)
        async with AsyncExitStack() as stack:
            for inode in sorted({source, target}, key=lambda inode: inode.number):
                await stack.enter_async_context(inode.committing)
            for run in runs:
                if job.stripes is not None and run.target.version is None:
                    run.target.version = ABSENT  # or it had been listed
                await self._writeback.know_version(run.source)
                await self._writeback.know_version(run.target)
            await self._commit(job, runs, done)
        self.shared_blocks += sum(run.blocks for run in runs)
        return done

    def _take_placement(self, source: Inode, target: Inode) -> None:
        ours, theirs = target.record, source.record
        assert ours is not None
        assert theirs is not None
        if not ours.size and not target.committed_size and ours.seed != theirs.seed:
            ours.seed = theirs.seed
            target.stripes.clear()
            self._writeback.mark_dirty(target)

    def _runs(self, job: Job) -> tuple[list[Run], int]:
        """Return the blocks to share, and how many are done with, up to what is too much."""
        first, index = job.source_offset // BLOCK_BYTES, job.target_offset // BLOCK_BYTES
        left = whole = _whole_blocks(job)
        target = job.target.inode
        had = stripes_of(target.committed_size)
        runs: list[Run] = []
        while left and len(runs) < SHARED_STRIPES:
            begins = first % STRIPE_BLOCKS, index % STRIPE_BLOCKS
            count = min(left, STRIPE_BLOCKS - max(begins))
            numbers = first // STRIPE_BLOCKS, index // STRIPE_BLOCKS
            if job.stripes is None or numbers[0] in job.stripes or numbers[1] < had:
                run = Run(
                    job.source.stripe(numbers[0]),
                    begins[0],
                    target.stripe(numbers[1]),
                    begins[1],
                    count,
                )
                if not self._volume.same_replicas(run.source.group, run.target.group):
                    break
                runs.append(run)
            first, index, left = first + count, index + count, left - count
        return runs, whole - left

    async def _commit(self, job: Job, runs: list[Run], length: int) -> None:
        source, target = job.source, job.target.inode
        stripes: dict[ObjectId, Stripe] = {}
        operations: dict[ObjectId, list[Operation]] = {}
        for run in runs:
            there = run.source.version != ABSENT
            for stripe in (run.source, run.target) if there else (run.target,):
                stripes[stripe.object_id] = stripe
                operations.setdefault(stripe.object_id, [])
            operations[run.target.object_id].append(
                Share(run.first, run.blocks, run.source.object_id, run.source_first)
                if there
                else Discard(run.first, run.blocks)
            )
        changes = [
            self._writeback.change(target, stripe, operations[object_id])
            for object_id, stripe in stripes.items()
            if stripe.version != ABSENT or _shares(operations[object_id])
        ]
        edits = [self._edit(job, length)]
        if source is not target:
            edits.append(Edit(source))
        await self._transactions.commit_holding(edits, changes)
        _follow(stripes, changes)

    def _edit(self, job: Job, length: int) -> Edit:
        target = job.target.inode
        record, origin = target.record, job.source.record
        assert record is not None
        assert origin is not None
        size = max(record.size, job.target_offset + length)
        changed = record.changed(
            size=size,
            blocks=min(record.blocks + min(blocks_of(length), origin.blocks), blocks_of(size)),
        )
        changed.touch(self._now_ns())
        edit = Edit(target, changed)
        edit.size = size
        return edit


def _on_one_grid(job: Job) -> bool:
    return not (job.source_offset - job.target_offset) % BLOCK_BYTES


def _whole_blocks(job: Job) -> int:
    """Return how many blocks of a job can be shared; the last one may end with both files."""
    source, target = job.source.record, job.target.inode.record
    assert source is not None
    assert target is not None
    ends = job.source_offset + job.length == source.size
    if ends and job.target_offset + job.length >= target.size:
        return blocks_of(job.length)
    return job.length // BLOCK_BYTES


def _shares(operations: list[Operation]) -> bool:
    return any(isinstance(operation, Share) for operation in operations)


def _follow(stripes: dict[ObjectId, Stripe], changes: list[Change]) -> None:
    for change in changes:
        stripes[change.object_id].version = change.version
