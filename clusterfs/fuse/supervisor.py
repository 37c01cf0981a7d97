"""A tiny process beside the daemon that drops the kernel's caches when the daemon no longer can.

The kernel answers reads and stats from its caches although the daemon is stopped or dead; once the
daemon's lease is over, other nodes change those files. The supervisor shares memory with the daemon
(beat.py), holds a duplicate of its /dev/fuse descriptor, and

  * just before the end of a lease that was not renewed: drops all dentries, and attributes and
    pages of every inode of the table. A daemon that comes back after a gap in its beats with its
    lease over may just have answered a READ from what it knew before, so the caches are dropped
    once more;
  * at the daemon's death: aborts the connection, so that nothing more is served or waited for,
    drops the caches, unmounts lazily, and reports that this node's caches are gone;
  * or, if the daemon hands the mount over, or may be replaced after a crash (beat.Succession):
    drops the caches, reports, and starts another daemon, which takes over the descriptor and the
    handles that are noted in the shared memory. Requests wait in the kernel meanwhile. A mount
    whose daemons keep on dying is given up.

It is the daemon's parent and imports neither trio nor pyfuse3: fork first, import later. If it
dies, the daemon gets SIGTERM. It never waits for the kernel on its only thread that matters: what
may hang is left to threads (dropping.py).
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clusterfs.errors import SetupError
from clusterfs.fuse import notify
from clusterfs.fuse.beat import (
    BEATS,
    DROPS,
    INCARNATION,
    LEASE_END,
    NODE,
    SUCCESSION,
    TABLE,
    TAKEOVERS,
    USED,
    Attachment,
    Beat,
    Succession,
    boottime_ns,
    received_attachment,
)
from clusterfs.fuse.dropping import Dropping
from clusterfs.fuse.inheritance import Inheritance
from clusterfs.fuse.unmounting import abort_connection, is_over, unmount_lazily

PERIOD_S = 0.25
_EARLY_NS = 100_000_000  # dropping takes a moment, and shall be over when the lease is
_GIVE_UP_S = 5.0
_REPORT_S = 10
_PR_SET_PDEATHSIG = 1
_MOST_CRASHES = 3  # in a minute; a mount with more is given up
_MINUTE_NS = 60_000_000_000
_DROP_BEFORE_TAKEOVER_S = 1.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOT_INHERITED = (signal.SIGINT, signal.SIGTERM)
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Main = Callable[[Beat, "ReadyPipe"], int]
Report = Callable[[int, int], None]
Successor = Callable[[Inheritance], Sequence[str]]


class ReadyPipe:
    """How the daemon tells the command that started it that the mount answers, or why not."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def awaited(self) -> bool:
        """Whether the command still waits for its answer."""
        return self._fd >= 0

    def ready(self) -> None:
        """Let the command return with success."""
        self._say("ready")

    def failed(self, message: str) -> None:
        """Let the command print the message and return with failure."""
        self._say("failed " + " ".join(message.split()))

    def waiting(self, message: str) -> None:
        """Let the command print why it takes so long, and wait on."""
        self._say("waiting " + " ".join(message.split()), last=False)

    def _say(self, line: str, *, last: bool = True) -> None:
        if self._fd >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._fd, line.encode() + b"\n")
            if last:
                self.close()

    def close(self) -> None:
        """Close it; later words go nowhere."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def run_supervised(
    main: Main,
    *,
    foreground: bool,
    report: Report | None = None,
    successor: Successor | None = None,
    log_path: str | None = None,
) -> int:
    """Run `main` as a daemon with a supervisor beside it.

    In the background it returns once the mount answers (0) or cannot (1, with one line on stderr);
    in the foreground when the daemon has ended. `report(node, incarnation)` runs in the supervisor
    after a death of the daemon, when nothing can be served any more. `successor(inheritance)`
    returns the command line of a daemon that takes the mount over. `log_path` is where both
    write their stdout and stderr in the background.
    """
    if foreground:
        with _ready_pipe() as (_said, ready):
            return _supervise(main, ready, report, successor)
    with _ready_pipe() as (said, ready):
        supervisor = os.fork()
        if supervisor == 0:
            _become_background(said, log_path)
            os._exit(_guarded(lambda: _supervise(main, ready, report, successor)))
        ready.close()
        with _ending_with_us(supervisor):
            return _await_ready(said, log_path)


@contextlib.contextmanager
def _ready_pipe() -> Iterator[tuple[int, ReadyPipe]]:
    said, say = os.pipe()
    ready = ReadyPipe(say)
    try:
        yield said, ready
    finally:
        os.close(said)
        ready.close()


@contextlib.contextmanager
def _ending_with_us(supervisor: int) -> Iterator[None]:
    """End the daemon too if the command is ended before the mount answers."""

    def give_up(number: int, _frame: object) -> None:
        os.kill(supervisor, signal.SIGTERM)
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, give_up) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _await_ready(said: int, log_path: str | None) -> int:
    """Wait for the daemon's last line, or for its end; say what it waits for meanwhile."""
    where = f"; see {log_path}" if log_path else "; its log says why, if there is one: -o log=FILE"
    message = f"the daemon ended before the mount answered{where}"
    with open(said, "rb", closefd=False) as lines:
        for line in lines:
            word, _, text = line.decode(errors="replace").strip().partition(" ")
            if word == "ready":
                return 0
            if word == "failed":
                message = text
                break
            _print(f"mount.clusterfs: waiting for {text}")
    _print(f"mount.clusterfs: {message}")
    return 1


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  the command's answer


def _become_background(said: int, log_path: str | None) -> None:
    os.close(said)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is no terminal to lose; inherited
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    output = null
    if log_path:
        output = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    sys.stdout.flush()
    sys.stderr.flush()
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for descriptor in {null, output} - {0, 1, 2}:
        os.close(descriptor)


def _guarded(work: Callable[[], int]) -> int:
    """Run a forked process' work: nothing may escape into the code that forked."""
    try:
        return work()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001  the last frame of a process
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def take_over(main: Main, inheritance: Inheritance) -> int:
    """Run `main` as the daemon that goes on with a mount; in a process that `successor` began."""
    beat = Beat(memory=inheritance.memory)
    beat.supervise_through(socket.socket(fileno=inheritance.line))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")  # the supervisor's is lower
    return _run_daemon(main, beat, ReadyPipe(-1), inheritance.supervisor)


def _supervise(
    main: Main, ready: ReadyPipe, report: Report | None, successor: Successor | None
) -> int:
    beat = Beat()
    upper, lower = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    daemon = os.fork()
    if daemon == 0:
        upper.close()
        beat.supervise_through(lower)
        os._exit(_guarded(lambda: _run_daemon(main, beat, ready, parent)))
    ready.close()
    lower.close()
    with upper:
        return Supervisor(daemon, beat, upper, report, successor).run()


def _run_daemon(main: Main, beat: Beat, ready: ReadyPipe, parent: int) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        return 1  # it died before the kernel knew that we want to hear of it
    # The store keeps two descriptors a segment; shells often allow 1024 although they may more.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        return main(beat, ready)
    except SetupError as wrong:
        ready.failed(str(wrong))
        _print(f"clusterfs: {wrong}")  # for the log, or the terminal
        return 1
    except BaseException as bug:
        first: BaseException = bug
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        ready.failed(f"the daemon failed: {type(first).__name__}: {first}")
        raise


class Supervisor:
    """Watches one daemon until it ends."""

    def __init__(
        self,
        daemon: int,
        beat: Beat,
        line: socket.socket,
        report: Report | None,
        successor: Successor | None = None,
    ) -> None:
        self._daemon = daemon
        self._line = line  # carries the session's descriptor
        self._beat = beat
        self._words = beat.words
        self._report = report
        self._successor = successor
        self._crashes_ns: list[int] = []
        self._reporters: list[int] = []  # processes that tell the others
        self._pidfd = os.pidfd_open(daemon)
        self._session = Attachment()
        self._beats_seen = 0
        self._missed = False
        self._dropped = False  # since the lease is over

    def run(self) -> int:
        """Watch; returns the daemon's exit code, 128 + n if signal n ended it."""
        self._prepare_process()
        while True:
            self._watch()
            code = self._reaped()
            if not self._goes_on(code):
                return self._bury(code)
            self._replace(code)

    def _watch(self) -> None:
        """Return when the daemon has ended."""
        events = select.poll()
        events.register(self._pidfd, select.POLLIN)
        events.register(self._line, select.POLLIN)
        while True:
            ready = dict(events.poll(self._nap_ms()))
            if self._line.fileno() in ready and not self._attach():
                events.unregister(self._line)
            if self._pidfd in ready:
                return
            self._check()

    def _prepare_process(self) -> None:
        """Outlive what ends the daemon: Ctrl-C, the OOM killer."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the daemon too
        for number in _FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._forward)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("-1000")

    def _forward(self, received: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._daemon, received)

    def _attach(self) -> bool:
        """Take over the session's descriptor; False once the daemon closed its end."""
        received = received_attachment(self._line)
        if received is None:
            return False
        if self._session.fd >= 0:
            os.close(self._session.fd)
        self._session = received
        return True

    # ---- alive ----

    def _nap_ms(self) -> int:
        """Sleep to the end of the lease, at most for a period."""
        left_ns = self._words[LEASE_END] - _EARLY_NS - boottime_ns()
        if left_ns <= 0:
            return round(PERIOD_S * 1000)
        return min(round(PERIOD_S * 1000), left_ns // 1_000_000 + 1)

    def _check(self) -> None:
        """Drop the caches if what they hold may no longer be believed."""
        lease_end, beats = self._words[LEASE_END], self._words[BEATS]
        returned = self._missed and beats != self._beats_seen
        self._missed = beats == self._beats_seen
        self._beats_seen = beats
        if lease_end - _EARLY_NS > boottime_ns():
            self._dropped = False
        elif not self._dropped or returned:
            self._dropped = True
            self._drop_caches(self._daemon_ended)

    def _daemon_ended(self) -> bool:
        return bool(select.select([self._pidfd], [], [], 0)[0])

    def _drop_caches(self, give_up: Callable[[], bool]) -> None:
        """Make the kernel ask for everything again; returns when only pages in flight are left."""
        fd = self._session.fd
        if fd < 0:
            return
        notify.increment_epoch(fd)
        used = self._words[USED]
        inodes = [inode for inode in self._words[TABLE : TABLE + used] if inode]
        if not Dropping(fd, inodes).run(give_up) and not self._daemon_ended():
            # Too many pages are in flight to get at the rest: better no mount than a stale one.
            abort_connection(self._session.connection, self._session.mountpoint)
            Dropping(fd, inodes).run(_after(_GIVE_UP_S))
        self._words[DROPS] += 1

    # ---- dead ----

    def _reaped(self) -> int:
        """Return how the daemon ended: its exit code, -n if signal n ended it."""
        _, status = os.waitpid(self._daemon, 0)
        code = os.waitstatus_to_exitcode(status)
        # A descriptor sent just before the end must not be missed.
        self._line.setblocking(False)
        with contextlib.suppress(OSError):
            while self._attach():
                pass
        return code

    def _bury(self, code: int) -> int:
        """Make sure that nothing of the daemon's mount can be seen any more."""
        fd, connection, mountpoint = self._session[:3]
        if fd >= 0:
            if not is_over(fd):
                abort_connection(connection, mountpoint)
            self._drop_caches(_after(_GIVE_UP_S))
            unmount_lazily(connection, mountpoint)
            os.close(fd)
        if code and self._report and self._words[NODE]:
            self._tell(self._report)
        return code if code >= 0 else 128 - code

    # ---- replaced ----

    def _goes_on(self, code: int) -> bool:
        """Tell whether another daemon is to take the mount over."""
        succession = self._words[SUCCESSION]
        if self._successor is None or self._session.fd < 0 or is_over(self._session.fd):
            return False
        if succession < Succession.HANDING_OVER and not (
            code and succession == Succession.AFTER_CRASH
        ):
            return False
        if not code:
            return True
        now_ns = boottime_ns()
        recent = [at_ns for at_ns in self._crashes_ns if at_ns > now_ns - _MINUTE_NS]
        self._crashes_ns = [*recent, now_ns]
        if len(recent) < _MOST_CRASHES:
            return True
        _print(f"clusterfs: {len(recent) + 1} daemons died in a minute: giving the mount up")
        return False

    def _replace(self, code: int) -> None:
        """Start another daemon for the same mount, whose kernel caches are empty."""
        assert self._successor is not None
        self._words[LEASE_END] = 0
        self._drop_caches(_after(_DROP_BEFORE_TAKEOVER_S))
        self._dropped = True
        if code and self._report and self._words[NODE]:
            self._tell(self._report, wait=False)
        self._words[TAKEOVERS] += 1
        self._line.close()
        self._line, lower = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        session = self._session
        inheritance = Inheritance(
            self._beat.memory,
            lower.fileno(),
            session.fd,
            session.connection,
            os.getpid(),
            session.request,
            session.reply,
        )
        for fd in inheritance.descriptors:
            os.set_inheritable(fd, True)
        command = list(self._successor(inheritance))
        self._daemon = os.posix_spawn(command[0], command, os.environ, setsigdef=_NOT_INHERITED)
        os.set_inheritable(session.fd, False)
        lower.close()
        os.close(self._pidfd)
        self._pidfd = os.pidfd_open(self._daemon)

    def _tell(self, report: Report, *, wait: bool = True) -> None:
        """Report from a process of its own: if it fails or hangs, others wait for the lease."""
        node, incarnation = self._words[NODE], self._words[INCARNATION]
        reporter = os.fork()
        if reporter == 0:
            signal.alarm(_REPORT_S)
            os._exit(_guarded(lambda: _reported(report, node, incarnation)))
        self._reporters.append(reporter)
        self._reporters = [pid for pid in self._reporters if not _ended(pid, wait=wait)]


def _reported(report: Report, node: int, incarnation: int) -> int:
    report(node, incarnation)
    return 0


def _ended(child: int, *, wait: bool) -> bool:
    pid, _status = os.waitpid(child, 0 if wait else os.WNOHANG)
    return pid == child


def _after(seconds: float) -> Callable[[], bool]:
    deadline_ns = boottime_ns() + int(seconds * 1e9)
    return lambda: boottime_ns() > deadline_ns
