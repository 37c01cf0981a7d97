"""One mount, from its options to its end.

Life: `attach` (mounts, or says in one line why not), `run` (answers requests until the filesystem
is unmounted, by anyone), `detach` (unmounts; in the ordinary way if nobody uses it, else lazily),
and `close`, always, at the end.

A mount may be taken over from a process that ended (`inheritance`), and handed over to the next
one: `hand_over` answers no more, `run` returns, and `close` leaves the mount where it is.

Receiving never stops: each request has a task of its own, and pyfuse3 is allowed as many tasks as
the kernel can have requests, so requests that wait for a lock hold up nobody else.
"""

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from clusterfs.errors import SetupError
from clusterfs.fuse import notify, receiving
from clusterfs.fuse.binding import native, pyfuse3
from clusterfs.fuse.dropping import Dropping
from clusterfs.fuse.inheritance import Inheritance
from clusterfs.fuse.kernel import SessionKernel
from clusterfs.fuse.requests import requests
from clusterfs.fuse.unmounting import (
    abort_connection,
    clear_dead,
    connection_at,
    is_over,
    mounts_at,
    syncfs,
    unmount,
    unmount_lazily,
)

if TYPE_CHECKING:
    from clusterfs.fuse.beat import Beat
    from clusterfs.fuse.operations import Operations

log = structlog.get_logger()

KIND = "fuse.clusterfs"
_MAX_TASKS = 1_000_000  # no limit: a blocked task is a few KiB
_READ_AHEAD_KIB = 1024
_WATCH_S = 1.0
_GRACE_S = 10.0
_PATIENCE_S = 30.0


class MountOptions(msgspec.Struct, frozen=True):
    """What the kernel is told about the mount."""

    fsname: str = "clusterfs"
    subtype: str = "clusterfs"
    allow_other: bool = True
    default_permissions: bool = True
    read_only: bool = False
    extra: tuple[str, ...] = ()  # meant for the kernel: noatime, noexec, nosuid, ...

    def strings(self) -> set[str]:
        """Return them as libfuse wants them."""
        _require_plain("fsname", self.fsname)
        options = {f"fsname={self.fsname}", f"subtype={self.subtype}", *self.extra}
        options |= {"allow_other"} if self.allow_other else set()
        options |= {"default_permissions"} if self.default_permissions else set()
        options |= {"ro"} if self.read_only else set()
        if os.geteuid() == 0:  # without root the kernel says nodev,nosuid
            options |= {word for word in ("dev", "suid") if f"no{word}" not in options}
        return options


class Mount:
    """The one mount of this process: pyfuse3 has one session."""

    def __init__(
        self, mountpoint: str, options: MountOptions, inheritance: Inheritance | None = None
    ) -> None:
        # Nobody answers at a mount that is to be taken over.
        self.mountpoint = mountpoint if inheritance else os.path.realpath(mountpoint)
        self.options = options
        self.connection = -1
        self.kernel = SessionKernel()
        self.answering = False
        self._cached_inodes: Callable[[], Iterable[int]] = tuple
        self._inheritance = inheritance
        self._handed_over = False
        self._serving: trio.CancelScope | None = None

    def attach(self, operations: "Operations") -> SessionKernel:
        """Mount; `kernel` works from now on. Requests wait from now on until `run` answers them.

        Raises SetupError, one line for the operator.
        """
        heir = self._inheritance
        if heir is None:
            require_mountable(self.mountpoint)
        else:
            native.take_over(heir.session, bytes.fromhex(heir.request), bytes.fromhex(heir.reply))
        self._further = operations.further
        native.set_dispatcher(self._further.dispatch)
        native.answer_at_once(operations.at_once.functions())
        try:
            pyfuse3.init(operations, self.mountpoint, self.options.strings())
        except RuntimeError as failure:
            raise SetupError(
                f"cannot mount at {self.mountpoint}: {failure}; libfuse's own message is above"
            ) from failure
        if not native.hooked():
            pyfuse3.close(unmount=True)
            raise SetupError(
                f"libfuse {native.LIBFUSE_VERSION} is not the one clusterfs was checked with "
                f"({native.KNOWN_LIBFUSE}), or pyfuse3 does not call it dynamically"
            )
        if heir is None:
            self.connection = connection_at(self.mountpoint) or -1
        else:
            self.connection = heir.connection
            if not native.replay_init():
                raise SetupError(
                    f"{self.mountpoint} was mounted by a clusterfs or libfuse that told the kernel "
                    "other things than this one would: unmount it and mount it again"
                )
        self.kernel.use(native.session_fd())
        self._cached_inodes = operations.use_kernel(self.kernel)
        return self.kernel

    def share_with_supervisor(self, beat: "Beat") -> None:
        """Let the supervisor drop the caches and unmount, should this process be unable to.

        Once more when the root answers: then there is what a successor has to know.
        """
        beat.attach(native.session_fd(), self.mountpoint, self.connection, native.exchanged_init())

    @property
    def is_inherited(self) -> bool:
        """Whether another process mounted it."""
        return self._inheritance is not None

    @property
    def can_be_taken_over(self) -> bool:
        """Whether another process could go on with this mount: the kernel must send again."""
        return notify.can_resend(native.exchanged_init()[0])

    def hand_over(self) -> None:
        """Answer no more, and let `run` return: another process takes this mount over."""
        native.abandon()
        self._handed_over = True
        if self._serving is not None:
            self._serving.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests until the filesystem is unmounted; started once the root answers."""
        async with trio.open_nursery() as nursery:
            self._serving = nursery.cancel_scope
            self._further.use(nursery)
            nursery.start_soon(self._answer, nursery.cancel_scope)
            nursery.start_soon(self._watch, nursery.cancel_scope)
            nursery.start_soon(requests.run)
            await trio.to_thread.run_sync(os.stat, self.mountpoint, abandon_on_cancel=True)
            self._tune()
            task_status.started()

    async def _answer(self, scope: trio.CancelScope) -> None:
        self.answering = True
        if self._inheritance is not None:
            notify.resend(native.session_fd())
        try:
            with receiving.in_place():
                await pyfuse3.main(min_tasks=receiving.SPARE_TASKS, max_tasks=_MAX_TASKS)
        finally:
            self.answering = False
        scope.cancel()

    async def _watch(self, scope: trio.CancelScope) -> None:
        """End `run` some time after an abort of the connection, whatever requests still wait."""
        while not is_over(native.session_fd()):  # noqa: ASYNC110  nothing tells us: pyfuse3 owns the descriptor
            await trio.sleep(_WATCH_S)
        await trio.sleep(_GRACE_S)
        scope.cancel()

    def _tune(self) -> None:
        """Raise what FUSE_INIT can only lower: the kernel reads ahead 128 KiB by default."""
        setting = Path(f"/sys/class/bdi/0:{self.connection}/read_ahead_kb")
        try:
            setting.write_text(str(_READ_AHEAD_KIB))
        except OSError as failure:
            log.info("read-ahead stays at the kernel's default", reason=str(failure))

    async def detach(self, patience_s: float = _PATIENCE_S) -> None:
        """Unmount and let `run` return. Requests are answered meanwhile.

        If somebody uses the mount, dirty pages are written and caches dropped, and what is still
        open gives errors from then on: nobody may read what this node no longer has locked. The
        same, if the mount cannot be emptied in time.
        """
        with trio.move_on_after(patience_s):
            if await trio.to_thread.run_sync(unmount, self.mountpoint, abandon_on_cancel=True):
                return
            await trio.to_thread.run_sync(syncfs, self.mountpoint, abandon_on_cancel=True)
        log.warning("the mount is busy; unmounting it lazily", mountpoint=self.mountpoint)
        await trio.to_thread.run_sync(self._abort, abandon_on_cancel=True)
        if self.answering:
            pyfuse3.terminate()

    def _abort(self) -> None:
        abort_connection(self.connection, self.mountpoint)
        notify.increment_epoch(native.session_fd())
        Dropping(native.session_fd(), self._cached_inodes()).run(lambda: False)
        unmount_lazily(self.connection, self.mountpoint)

    def close(self) -> None:
        """Give everything back; unmounts lazily if that has not happened. May come twice."""
        if self.connection >= 0:
            if not self._handed_over:
                unmount_lazily(self.connection, self.mountpoint)
            pyfuse3.close(unmount=False)
            self.connection = -1


def require_mountable(mountpoint: str) -> None:
    """Clear a dead clusterfs away from the mount point and check that one can mount there."""
    if not Path("/dev/fuse").exists():
        raise SetupError("there is no /dev/fuse here: load the fuse module (modprobe fuse)")
    clear_dead(mountpoint, KIND)
    if found := [mount for mount in mounts_at(mountpoint) if mount.kind == KIND]:
        raise SetupError(
            f"a clusterfs ({found[-1].source}) is already mounted at {mountpoint}; unmount it first"
        )
    try:
        mode = Path(mountpoint).stat().st_mode
    except OSError as failure:
        raise SetupError(f"cannot use mount point {mountpoint}: {failure.strerror}") from failure
    if not stat.S_ISDIR(mode):
        raise SetupError(f"mount point {mountpoint} is not a directory")


def _require_plain(name: str, text: str) -> None:
    if not text or "," in text or "\\" in text or not text.isprintable():
        raise SetupError(f"{name} {text!r} may not be empty or contain commas or backslashes")
