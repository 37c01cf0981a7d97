"""One node: the composition root, the only module that knows every other.

A node's life: open the brick, join the cluster, mount, serve until it is unmounted, leave. A node
that the others had to remove (its lease ended) drops what it had cached, joins again as a new
incarnation, and goes on; programs on its mount notice a pause.

Invariants:
  * a view is entered by mesh, locks and volume in one step, before any task runs: so nobody who is
    granted a lock in it reads before the volume's gate is closed;
  * every message carries the highest epoch this node has heard of, and whoever hears of a newer
    view enters it before it acts: so nobody reads from a replica that was dropped before the write;
  * the mesh lists exactly the members that are UP;
  * the beat tells the supervisor how long what the kernel caches may be believed.
"""

import gc
import os
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import structlog
import trio

from clusterfs import brick, control, metrics, observe
from clusterfs.administration import Administration
from clusterfs.cluster import grace, report, waiting
from clusterfs.cluster.joining import Applicant, weight_of
from clusterfs.cluster.node import Membership, insist
from clusterfs.cluster.providers import Identity, Provider, Registration
from clusterfs.cluster.providers.opening import open_provider, report_caches_dropped
from clusterfs.cluster.reach import Comeback
from clusterfs.cluster.revocation import Revoked
from clusterfs.cluster.views import State, View
from clusterfs.config import Config
from clusterfs.errors import BrickFailed, SetupError, Unavailable, WouldBlock
from clusterfs.fs.filesystem import Filesystem, Settings
from clusterfs.fs.kernel import NoKernel
from clusterfs.fs.value_block import VALUE_BYTES
from clusterfs.fuse.beat import Beat
from clusterfs.fuse.inheritance import Inheritance
from clusterfs.fuse.mount import Mount, MountOptions
from clusterfs.fuse.operations import Operations
from clusterfs.fuse.squash import SquashedOperations
from clusterfs.fuse.supervisor import ReadyPipe
from clusterfs.fuse.unmounting import ending_signals
from clusterfs.handover import Handover
from clusterfs.heap import keep_buffers
from clusterfs.lock_channel import LOCKS, LockChannel
from clusterfs.service_manager import ServiceManager
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.store import Store
from clusterfs.transport import listen, mesh_timing, mesh_tls
from clusterfs.volume.placement import incarnation_of_inode
from clusterfs.volume.volume import Volume
from clusterfs.watching import Watching
from dlm.errors import LockLost
from dlm.net import Mesh, Peer, answers
from dlm.node import Lockspace

_BEAT_S = 0.1
_LEAVE_S = 5.0  # to let others master what they use here
# New objects, and rounds of each generation: so that no collection holds the loop for long.
_COLLECTED_AFTER = (5_000, 3, 1_500)
_COMES_BACK_S = 30.0
_EPOCH = "epoch"  # the store's fact: the highest epoch it has seen


def run(  # noqa: PLR0913, PLR0917  (the command line decides what there is)
    config: Config,
    source: Path,
    mountpoint: Path | None,
    kernel_options: tuple[str, ...],
    beat: Beat,
    ready: ReadyPipe,
    inheritance: Inheritance | None = None,
) -> int:
    """Run one node until it is unmounted; returns the exit code. Raises SetupError.

    Without a mount point it serves its brick to the others until it is told to end. With an
    inheritance it goes on with a mount whose daemon has ended.
    """
    observe.set_up_logs(None, config.log_level, node=config.name)
    options = MountOptions(fsname=str(source), read_only=config.is_read_only, extra=kernel_options)
    keep_buffers()
    gc.freeze()  # the modules stay: do not look at them in every collection
    gc.set_threshold(*_COLLECTED_AFTER)
    try:
        mount = None if mountpoint is None else Mount(str(mountpoint), options, inheritance)
        trio.run(Daemon(config, source, mount, beat, ready).main)
    except* SetupError as group:
        raise _first(group) from None
    return 0


def caches_dropped(config: Config, node: int, incarnation: int) -> None:
    """Tell the others that this node's kernel serves nothing any more; for the supervisor."""
    report_caches_dropped(config, node, incarnation)


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


class Daemon:
    """One node, from its brick to its mount."""

    membership: Membership
    store: Store | None = None  # None: a client only
    mesh: Mesh
    volume: Volume
    locks: Lockspace
    filesystem: Filesystem

    def __init__(
        self, config: Config, source: Path, mount: Mount | None, beat: Beat, ready: ReadyPipe
    ) -> None:
        self.config = config
        self.source = source
        self._mount = mount
        self.mountpoint = "" if mount is None else mount.mountpoint
        self._beat = beat
        self._ready = ready
        self._log = structlog.get_logger(package="daemon")
        self._lock_channel = LockChannel(self)
        self._nursery: trio.Nursery
        self._reclaim = trio.Event()
        self._incarnation = 0  # the one that locks and volume are set up for
        self._poked_epoch = 0
        self._said_so = mount is not None and mount.is_inherited  # that it serves
        self._manager = ServiceManager()
        self._closing = ExitStack()
        self.handover = Handover(self, mount, beat)

    async def main(self) -> None:
        """Run until the filesystem is unmounted. Raises SetupError."""
        provider = open_provider(self.config)
        try:
            await self._open_and_serve(provider)
            self._log.info("ends")
            self.handover.end()
        finally:
            self._closing.close()
            with trio.CancelScope(shield=True):
                await provider.close()

    async def _open_and_serve(self, provider: Provider) -> None:
        disk = DirectoryDisk(Path(self.config.brick))
        found = self.config.storage and disk.read_superblock() is None
        identity = await insist(lambda: provider.identity(self.config.lease_s, found=found))
        if self.config.storage:
            failed = self._brick_failed
            self.store = await brick.open_brick(self.config, identity, provider, failed)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._serve(provider, identity)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                if self.store is not None:
                    await self.store.close()

    async def _serve(self, provider: Provider, identity: Identity) -> None:
        applicant = Applicant(
            self.config.name,
            store_id="" if self.store is None else self.store.store_id,
            cluster=identity.cluster,
            store_epoch=self._stored_epoch(),
            groups=self.config.groups,
            replicas=self.config.replicas,
            keeps_places=self.config.grace_s > 0,
            weight=self.config.weight or weight_of(shutil.disk_usage(self.config.brick).total),
        )
        self._identity = identity
        address = self.config.public_address
        self._comeback = Comeback(provider, self.config.lease_s, answers, address)
        self._revoked = Revoked(provider)
        joined = Membership.joined(provider, applicant, self._announce, lease_s=self.config.lease_s)
        async with joined as self.membership:
            self._begin()
            await self._start_services()
            if self._mount is None:
                await self._serve_until_signalled()
            else:
                await self._serve_mount(self._mount)
            await self._end()

    # --- joining

    async def _announce(self, registration: Registration) -> str:
        """Take the identity of a new incarnation; returns where its peers reach it."""
        address = self.config.public_address
        me = Peer(registration.node, registration.incarnation, address)
        if hasattr(self, "mesh"):
            self.mesh.become(me)
            self._lock_channel.clear()  # what still came was for the one that is over
            return address
        self.mesh = Mesh(
            me,
            self._identity.cluster,
            self._identity.secret,
            self._heard_epoch,
            structlog.get_logger(package="net"),
            on_lost=self._accuse,
            timing=mesh_timing(self._identity.lease_s),
            tls=mesh_tls(self.config, self._name_of, self._revoked.refusal),
        )
        self.mesh.register(LOCKS, self._lock_channel)
        await insist(self._revoked.load)
        self._nursery.start_soon(self._revoked.keep)
        await listen(self._nursery, self.mesh, self.config.listen)
        return address

    def _name_of(self, node: int) -> str | None:
        member = self.membership.view.member(node) if hasattr(self, "membership") else None
        return member.name if member else None

    def _heard_epoch(self) -> int:
        """Return what messages carry: the highest epoch that this node has heard of."""
        return self.volume.heard_epoch if hasattr(self, "volume") else 0

    def _begin(self) -> None:
        """Set up everything above a membership that is new."""
        self.volume = Volume(
            self.store,
            self.mesh,
            self.membership,
            resync_bytes=self.config.resync_mib_s << 20,
            trim_after_s=self.config.trim_after_s,
            read_only=self.config.exports.read_only,
        )
        self.locks = self._new_locks()
        self.filesystem = Filesystem(
            self.volume,
            self.locks,
            NoKernel() if self._mount is None else self._mount.kernel,
            lease_left_s=self.membership.lease_left_s,
            now_ns=time.time_ns,
            settings=Settings(
                dirty_bytes=self.config.cache_mib << 20,
                fail_when_lost=self.config.on_lost == "eio",
                read_only=self.config.is_read_only,
                access_time_delay_s=self.config.access_times_kept_s,
            ),
            journal=None if self._mount is None else self.handover.journal,
        )
        self.membership.subscribe(self._entered)
        self._connect(self.membership.view)
        self._remember_epoch(self.membership.view)
        self._enter_locks(self.membership.view)

    async def _start_services(self) -> None:
        self._nursery.start_soon(
            waiting.explain, self.membership, lambda: self._ready.awaited, self._ready.waiting
        )
        await self._nursery.start(self.volume.run)
        self._nursery.start_soon(grace.keep, self.membership, self.config.grace_s)
        self._nursery.start_soon(self._keep_beating)
        self._nursery.start_soon(self._readmit_when_lost)
        administration = Administration(self)
        watching = Watching(
            self.mesh,
            self.filesystem.events,
            lambda: self.membership.node,
            lambda: {member.node: member.name for member in self.membership.view.members},
        )
        self._nursery.start_soon(watching.run)
        self.handover.ask(administration.awaiting_locks)
        handlers = administration.handlers() | {
            "hand_over": self.handover.begin,
            "watch": watching.begin,
            "watch_change": watching.change,
            "watch_next": watching.next,
            "watch_end": watching.end,
        }
        server = control.Server(handlers, control.group_number(self.config.admin_group))
        await self._nursery.start(server.serve, self.config.control_socket)
        if self.config.metrics is not None:
            endpoint = metrics.serving(self.config.metrics, administration.snapshot)
            self._closing.enter_context(endpoint)
        await self._nursery.start(self.filesystem.run)
        await self.handover.take_over()
        self._nursery.start_soon(self._reclaim_when_told)
        self._nursery.start_soon(self.handover.keep_settled)

    def _new_locks(self) -> Lockspace:
        self._incarnation = self.membership.incarnation
        locks = Lockspace(
            self.membership.node,
            self._incarnation,
            lambda node, message: self.mesh.send(node, LOCKS, message),
            lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
            lvb_bytes=VALUE_BYTES,
        )
        self.volume.when_rolled_forward(locks.gate_opened)
        locks.set_gate(lambda _root, lock_epoch: self.volume.rolled_forward(lock_epoch))
        locks.set_maker_of(lambda root: incarnation_of_inode(int.from_bytes(root)))
        locks.on_deadlock = lambda story: self._log.debug("deadlock", story=story)
        locks.trees.move_by_use()
        self._nursery.start_soon(locks.run)
        return locks

    # --- views

    def _entered(self, old: View, new: View) -> None:
        """Enter a view; the volume enters it next, when its peers are listed."""
        if self.membership.incarnation != self._incarnation:
            return  # the first view of a new incarnation: `_readmit` goes on from there
        self._connect(new)
        self._remember_epoch(new)
        if new.lock_epoch != old.lock_epoch:
            self._enter_locks(new)
            self._reclaim.set()
        self._lock_channel.drain(new)

    def _remember_epoch(self, view: View) -> None:
        """Let the store refuse, at its next start, a provider that has lost views."""
        self.handover.enter(view.epoch)
        with suppress(WouldBlock, BrickFailed):  # a later view, or a full log, costs nothing here
            if self.store is not None:
                self.store.set_fact(_EPOCH, view.epoch)

    def _connect(self, view: View) -> None:
        self.mesh.set_peers(
            Peer(m.node, m.incarnation, m.address) for m in view.members if m.state is State.UP
        )

    def _enter_locks(self, view: View) -> None:
        up = {m.node: m.incarnation for m in view.members if m.state is State.UP}
        leaving = {m.node: m.incarnation for m in view.members if m.state is State.LEAVING}
        self.locks.enter(view.lock_epoch, up, leaving, view.lock_epoch_before)

    @property
    def view_epoch(self) -> int:
        """The epoch of the view in force here."""
        return self.membership.view.epoch

    def heard(self, epoch: int) -> None:
        """Note the highest epoch that anybody knows."""
        self.volume.heard(epoch)

    def poke(self, epoch: int) -> None:
        """Fetch the view of that epoch soon."""
        if epoch > self._poked_epoch:
            self._poked_epoch = epoch
            self._nursery.start_soon(self.membership.entered, epoch)

    def _brick_failed(self, failure: OSError) -> None:
        self._log.error("the brick failed and is read-only", reason=str(failure))
        if hasattr(self, "membership"):
            self._nursery.start_soon(self._leave_sets, f"its brick failed: {failure}")

    async def _leave_sets(self, reason: str) -> None:
        """Let nobody wait for this replica any more; the only copy of something stays."""
        while not self.membership.lost.is_set():
            with suppress(Unavailable):
                await self.membership.drop_replica(self.membership.node, None, reason)
                return
            await trio.sleep(_BEAT_S)

    def _accuse(self, node: int, incarnation: int) -> None:
        self.membership.accuse(node, incarnation)

    # --- tasks

    async def _keep_beating(self) -> None:
        self._beat.identify(self.membership.node, self.membership.incarnation)
        while True:
            self._beat.renew(self.membership.lease_left_s())
            self._manager.alive(trio.current_time())
            await trio.sleep(_BEAT_S)

    async def _readmit_when_lost(self) -> None:
        """Come back as a new incarnation after each loss."""
        await self.filesystem.begun()
        while True:
            await self.membership.lost.wait()
            strangers = [peer.node for peer in self.mesh.never_met()]
            self._log.error("this node was removed; it drops its caches and joins again")
            self.handover.out()
            self.filesystem.lost()
            self.locks.lose()
            self.volume.lose()
            await self.filesystem.wait_dropped()
            await self.membership.caches_dropped()
            self._lock_channel.clear()
            await self._comeback.wait(self.membership.node, strangers, serving=self._said_so)
            await self.membership.rejoin()
            self._beat.identify(self.membership.node, self.membership.incarnation)
            self._connect(self.membership.view)
            self.volume.session(self.membership.incarnation)
            self.locks = self._new_locks()
            self._enter_locks(self.membership.view)
            self._lock_channel.drain(self.membership.view)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_up_when_lost)
                with suppress(LockLost):  # lost once more: the next round takes care of it
                    await self.filesystem.readmitted(self.locks)
                    self.handover.back(self.membership.view.epoch)
                nursery.cancel_scope.cancel()

    async def _give_up_when_lost(self) -> None:
        """End the waits of a readmission that the next loss has overtaken."""
        await self.membership.lost.wait()
        self.filesystem.lost()
        self.locks.lose()
        self.volume.lose()

    async def _reclaim_when_told(self) -> None:
        """Reclaim what clients that are gone left unlinked but open.

        Not at once: a mount that goes on with another daemon takes such files up again.
        """
        if self.config.is_read_only:
            return
        patience_s = 0.0
        self._reclaim.set()
        while True:
            await self._reclaim.wait()
            self._reclaim = trio.Event()
            await trio.sleep(patience_s)
            patience_s = max(_COMES_BACK_S, 3 * self.config.lease_s)
            await self.filesystem.reclaim_marked(
                report.led_groups(self.membership.view, self.membership.node)
            )

    async def _serve_mount(self, mount: Mount) -> None:
        operations = SquashedOperations if self.config.squashes_root else Operations
        mount.attach(operations(self.filesystem, self.handover.cached, self.handover.again))
        try:
            mount.share_with_supervisor(self._beat)
            # Signals are taken until the very end: one that comes during the last flush must not
            # end the process before it has written everything.
            self._nursery.start_soon(self._detach_on_signal, mount)
            self._nursery.start_soon(self._say_ready, mount)
            await mount.run()
        finally:
            mount.close()

    async def _say_ready(self, mount: Mount) -> None:
        await trio.to_thread.run_sync(os.statvfs, self.mountpoint, abandon_on_cancel=True)
        mount.share_with_supervisor(self._beat)
        self.handover.allow(after_crash=self.config.after_crash == "restart")
        self._say_so()

    def _say_so(self) -> None:
        self._said_so = True
        self._ready.ready()
        self._manager.ready(f"{self.config.name} serves {self.mountpoint or 'its brick'}")

    async def _detach_on_signal(self, mount: Mount) -> None:
        with trio.open_signal_receiver(*ending_signals()) as signals:
            async for _ in signals:
                if mount.answering:
                    self._nursery.start_soon(mount.detach)

    async def _serve_until_signalled(self) -> None:
        with trio.open_signal_receiver(*ending_signals()) as signals:
            await self.volume.statfs()  # the cluster answers
            self._say_so()
            async for _ in signals:
                return

    async def _end(self) -> None:
        """Leave nothing behind: everything on disk, no lock, no membership."""
        self._log.info("leaving the cluster")
        await self.filesystem.close()
        await self.locks.trees.leave(_LEAVE_S)
        await self.volume.sync()
        self.handover.left(await self.membership.leave())
        self._log.info("left the cluster")

    def _stored_epoch(self) -> int:
        epoch = None if self.store is None else self.store.fact(_EPOCH)
        return epoch if isinstance(epoch, int) else 0
