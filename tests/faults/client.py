"""One client of a shared folder: does random operations, and writes down when and what came of it.

`client.py MOUNT FOLDER OUTPUT NUMBER SEED PACE_S`; PACE_S is the mean rest between operations; `0`:
look at everything once. It ends after the operation under way when its standard input ends. OUTPUT
gets a line when an operation begins, another when it is over; times are CLOCK_MONOTONIC
nanoseconds. Imports nothing but the standard library: it starts at once.

The files: `r0`, `r1` (blocks, written and read as a whole), `log` (records of 64 bytes, appended),
`a/` and `b/` (names that come, move and go), `locks` (never written; each of two
ranges is locked and unlocked). What is longer than a page, or changes its length, is
read through handles that may write: only they are answered by the filesystem in one piece.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import random
import select
import sys
import time
from collections.abc import Callable
from typing import Any

BLOCKS = {"r0": 4096, "r1": 200_000}  # bytes, multiples of 16
RECORD = 64
RANGES = ("range0", "range1")  # of `locks`, RECORD bytes each
FOLDERS = "ab"
NAMES = [f"{folder}/{name}" for folder in FOLDERS for name in ("x", "y", "z")]
_GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ESTALE)
_GETDENTS_BYTES = 32768
_libc = ctypes.CDLL(None, use_errno=True)


class Files:
    """Paths below the mount, by way of a descriptor of the mount itself.

    So nothing is ever done to what lies below the mount point when the mount is gone.
    """

    def __init__(self, mount: str, folder: str) -> None:
        self._mount, self._folder = mount, folder
        self._root = -1
        self._kept: dict[tuple[str, int], tuple[int, int]] = {}  # to (descriptor, handle number)
        self._opened = 0
        self.used = 0  # number of the handle that was used last

    def root(self) -> int:
        if self._root < 0:
            root = os.open(self._mount, os.O_RDONLY | os.O_DIRECTORY)
            if os.fstat(root).st_dev == os.stat(os.path.dirname(self._mount)).st_dev:
                os.close(root)
                raise OSError(errno.ENOTCONN, "not mounted")
            self._root = root
        return self._root

    def path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    @contextlib.contextmanager
    def opened(self, name: str, flags: int) -> Any:
        """Open for a moment."""
        descriptor = os.open(self.path(name), flags, 0o644, dir_fd=self.root())
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def handle(self, name: str, flags: int) -> int:
        """Return a descriptor that stays open until `forget`."""
        if (name, flags) not in self._kept:
            descriptor = os.open(self.path(name), flags, dir_fd=self.root())
            self._opened += 1
            self._kept[name, flags] = descriptor, self._opened
        descriptor, self.used = self._kept[name, flags]
        return descriptor

    def forget(self, *, with_root: bool = False) -> None:
        for descriptor, _ in self._kept.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._kept.clear()
        if with_root and self._root >= 0:
            with contextlib.suppress(OSError):
                os.close(self._root)
            self._root = -1


class Client:
    """Does operations on the files, and writes them down."""

    def __init__(self, files: Files, output: int, number: int) -> None:
        self._files, self._output = files, output
        self.odd = ""  # what the log was when it was not whole records
        self._number = number
        self._value = number * 1_000_000
        self._locks = -1  # a descriptor of its own: closing any would end the locks
        self._locked = ""

    def _do(self, thing: str, action: list[Any], call: Callable[[], Any]) -> bool:
        """Do one operation and note both ends of it; returns whether it succeeded."""
        try:
            self._files.root()
        except OSError:
            time.sleep(0.05)  # no mount: nothing was done, so there is nothing to note
            return False
        self._note(thing=thing, action=action)
        try:
            result = call()
        except OSError as failure:
            self._note(error=failure.errno, text=str(failure))
            self._files.forget(with_root=failure.errno in _GONE)
            time.sleep(0.05)
            return False
        self._note(result=result, handle=self._files.used)
        return True

    def _note(self, **line: Any) -> None:
        line["at"] = time.monotonic_ns()
        os.write(self._output, json.dumps(line).encode() + b"\n")

    def _unique(self) -> int:
        self._value += 1
        return self._value

    def forget(self) -> None:
        self._files.forget()

    # --- blocks

    def write(self, name: str, *, sync: bool) -> None:
        value = self._unique()
        content = block(name, value)
        handle = lambda: self._files.handle(name, os.O_RDWR)  # noqa: E731
        if self._do(name, ["write", value], lambda: os.pwrite(handle(), content, 0)) and sync:
            self._do(name, ["sync"], lambda: os.fsync(handle()))

    def read(self, name: str, flags: int) -> None:
        def call() -> int:
            content = os.pread(self._files.handle(name, flags), BLOCKS[name], 0)
            values = set(content.split())
            if len(values) != 1 or len(content) != BLOCKS[name]:
                return -1  # torn
            return int(values.pop())

        self._do(name, ["read"], call)

    # --- the log

    def append(self, *, sync: bool) -> None:
        value = self._unique()
        handle = lambda: self._files.handle("log", os.O_WRONLY | os.O_APPEND)  # noqa: E731
        record = b"%063d\n" % value
        if self._do("log", ["append", value], lambda: os.write(handle(), record)) and sync:
            self._do("log", ["sync"], lambda: os.fsync(handle()))

    def read_log(self) -> None:
        def call() -> list[int]:
            content = os.pread(self._files.handle("log", os.O_RDWR), 1 << 20, 0)
            lines = content.split(b"\n")[:-1]
            whole = len(content) % RECORD == 0 and all(line.isdigit() for line in lines)
            if not whole:
                self.odd = odd(content)
            return [int(line) for line in lines] if whole else [-1]

        self._do("log", ["read"], call)
        if self.odd:
            self._note(odd=self.odd)  # for people; a history knows nothing of it
            self.odd = ""

    def size(self) -> None:
        files = self._files
        self._do(
            "log",
            ["size"],
            lambda: os.stat(files.path("log"), dir_fd=files.root()).st_size / RECORD,
        )

    def truncate(self) -> None:
        self._do("log", ["truncate"], lambda: os.ftruncate(self._files.handle("log", os.O_RDWR), 0))

    # --- locks

    def lock(self, name: str) -> None:
        """Lock a range if nobody has it; or unlock the one that is locked."""
        taken = False

        def lock() -> bool:
            nonlocal taken
            if self._locks < 0:
                path = self._files.path("locks")
                self._locks = os.open(path, os.O_RDWR, dir_fd=self._files.root())
            try:
                fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, *_span(name))
            except (BlockingIOError, PermissionError):
                return False
            taken = True
            return True

        if self._locked:
            name, self._locked = self._locked, ""
            unlock = lambda: fcntl.lockf(self._locks, fcntl.LOCK_UN, *_span(name))  # noqa: E731
            done = self._do(name, ["unlock", self._number], unlock)
        else:
            done = self._do(name, ["lock", self._number], lock)
        if not done and self._locks >= 0:
            with contextlib.suppress(OSError):
                os.close(self._locks)
            self._locks = -1
        elif taken:
            self._locked = name

    # --- names

    def create(self, name: str) -> None:
        def call() -> int:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            try:
                with self._files.opened(name, flags) as descriptor:
                    return os.fstat(descriptor).st_ino
            except FileExistsError:
                return 0

        self._do("tree", ["create", name, self._unique()], call)

    def unlink(self, name: str) -> None:
        files = self._files
        self._change(["unlink", name], lambda: os.unlink(files.path(name), dir_fd=files.root()))

    def rename(self, old: str, new: str) -> None:
        def call() -> None:
            root, paths = self._files.root(), [self._files.path(name) for name in (old, new)]
            os.rename(*paths, src_dir_fd=root, dst_dir_fd=root)

        self._change(["rename", old, new], call)

    def _change(self, action: list[Any], call: Callable[[], None]) -> None:
        def changed() -> bool:
            try:
                call()
            except FileNotFoundError:
                return False
            return True

        self._do("tree", action, changed)

    def stat(self, name: str) -> None:
        def call() -> int | None:
            for _ in range(100):
                try:
                    return os.stat(self._files.path(name), dir_fd=self._files.root()).st_ino
                except FileNotFoundError:
                    return None
                except OSError as failure:
                    if failure.errno != errno.ESTALE:  # replaced twice within one call
                        raise
            raise OSError(errno.ESTALE, "replaced again and again")

        self._do("tree", ["stat", name], call)

    def list(self, folder: str) -> None:
        def call() -> list[str]:
            with self._files.opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
                return one_page(descriptor)

        self._do("tree", ["list", folder], call)

    # --- what to do

    def at_random(self, source: random.Random) -> None:
        """Do something."""
        name, (old, new) = source.choice(list(BLOCKS)), source.sample(NAMES, 2)
        flags = source.choice([os.O_RDWR, os.O_RDONLY, os.O_RDONLY]) if name == "r0" else os.O_RDWR
        sync = source.random() < 0.5
        deeds: list[tuple[float, Callable[[], None]]] = [
            (3, lambda: self.write(name, sync=sync)),
            (4, lambda: self.read(name, flags)),
            (2, lambda: self.append(sync=sync)),
            (1.5, self.read_log),
            (1.5, self.size),
            (0.15, self.truncate),
            (1.5, lambda: self.create(new)),
            (1, lambda: self.unlink(old)),
            (1.5, lambda: self.rename(old, new)),
            (3, lambda: self.stat(new)),
            (1.5, lambda: self.list(source.choice(FOLDERS))),
            (0.5, self.forget),
            (3, lambda: self.lock(source.choice(RANGES))),
        ]
        source.choices(deeds, [weight for weight, _ in deeds])[0][1]()

    def everything(self) -> None:
        """Look at all there is."""
        for name in BLOCKS:
            self.read(name, os.O_RDWR)
        self.read_log()
        self.size()
        for name in NAMES:
            self.stat(name)
        for folder in FOLDERS:
            self.list(folder)


def _span(name: str) -> tuple[int, int]:
    """Return length and start of a range, as lockf wants them."""
    return RECORD, RANGES.index(name) * RECORD


def odd(content: bytes) -> str:
    """Describe a log that is not whole records: each by its number, or by what it is instead."""
    records = [content[at : at + RECORD] for at in range(0, len(content), RECORD)]
    found = []
    for record in records:
        if len(record) == RECORD and record[:-1].isdigit() and record.endswith(b"\n"):
            found.append(str(int(record)))
        else:
            found.append("zeros" if not any(record) else repr(record))
    return f"{len(content)} bytes: {', '.join(found)}"


def block(name: str, value: int) -> bytes:
    return b"%015d\n" % value * (BLOCKS[name] // 16)


def one_page(descriptor: int) -> list[str]:
    """Return the names of one call of getdents64: what is one request to the filesystem."""
    buffer = ctypes.create_string_buffer(_GETDENTS_BYTES)
    length = _libc.getdents64(descriptor, buffer, _GETDENTS_BYTES)
    if length < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    names, place = [], 0
    while place < length:
        entry_bytes = int.from_bytes(buffer.raw[place + 16 : place + 18], "little")
        names.append(buffer.raw[place + 19 : place + entry_bytes].split(b"\0")[0].decode())
        place += entry_bytes
    return [name for name in names if name not in (".", "..")]


def told_to_stop() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def main() -> None:
    mount, folder, output, number, seed, pace_s = sys.argv[1:]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    client = Client(Files(mount, folder), os.open(output, flags, 0o644), int(number))
    if float(pace_s) == 0:
        client.everything()
        return
    source = random.Random(seed)
    while not told_to_stop():
        client.at_random(source)
        time.sleep(source.expovariate(1 / float(pace_s)))


if __name__ == "__main__":
    main()
