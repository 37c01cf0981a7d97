"""Three mounts of one volume behave as one directory of the real filesystem does.

A program of calls is run on the host's filesystem, and on the mounts, each call through any of
them; results and errnos must agree, and at the end the trees.
"""

# ruff: noqa: PTH101, PTH102, PTH106, PTH108, PTH118, PTH208, PTH211, S103

import ctypes
import errno
import os
import random
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterfs.errors import FilesystemError
from clusterfs.fs.filesystem import Filesystem, Settings
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Attributes, Changes
from clusterfs.sim.mounts import World

NODES = 3
NAMES = [b"a", b"b", b"c"]
PATHS = [(n,) for n in NAMES] + [(n, m) for n in NAMES for m in NAMES]
OFFSETS = [0, 1, 4095, 4096, 5000, 12288, (64 << 20) - 3, (64 << 20) + 4096, 200 << 20]
SIZES = [1, 100, 4096, 8192, 12289]

COPIED = [1, 4096, 12288, 12289, 3 << 20]

path = st.sampled_from(PATHS)
operations = st.one_of(
    st.tuples(st.just("create"), path),
    st.tuples(st.just("mkdir"), path),
    st.tuples(st.just("symlink"), path),
    st.tuples(st.just("link"), path, path),
    st.tuples(st.just("unlink"), path),
    st.tuples(st.just("rmdir"), path),
    st.tuples(st.just("rename"), path, path, st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("write"), path, st.sampled_from(OFFSETS), st.sampled_from(SIZES)),
    st.tuples(st.just("append"), path, st.sampled_from(SIZES)),
    st.tuples(st.just("truncate"), path, st.sampled_from([*OFFSETS, 4097, 70, 8000])),
    st.tuples(
        st.just("fallocate"),
        path,
        st.sampled_from(OFFSETS),
        st.sampled_from(SIZES),
        st.sampled_from([0, 1, 3, 0x10, 0x11]),
    ),
    st.tuples(
        st.just("copy"),
        path,
        path,
        st.sampled_from(OFFSETS),
        st.sampled_from(OFFSETS),
        st.sampled_from(COPIED),
    ),
    st.tuples(st.just("read"), path, st.sampled_from(OFFSETS), st.sampled_from(SIZES)),
    st.tuples(st.just("list"), path),
    st.tuples(st.just("stat"), path),
    st.tuples(st.just("chmod"), path, st.sampled_from([0o600, 0o755, 0o4755])),
)
programs = st.lists(st.tuples(st.integers(1, NODES), operations), max_size=40)

SETUP = [
    (1, ("mkdir", (b"a",))),
    (2, ("create", (b"b",))),
    (3, ("create", (b"a", b"a"))),
    (1, ("write", (b"b",), 4095, 8192)),
    (2, ("write", (b"a", b"a"), (64 << 20) - 3, 12289)),
    (3, ("link", (b"b",), (b"a", b"b"))),
]
_libc = ctypes.CDLL(None, use_errno=True)


def shown(mode: int, nlink: int, size: int) -> tuple[int, ...]:
    return (mode, nlink, 0 if stat.S_ISDIR(mode) else size)


def pattern(size: int, salt: int) -> bytes:
    return random.Random(salt).randbytes(64) * (size // 64) + bytes([salt % 255 + 1]) * (size % 64)


class Host:
    """The reference: the host's filesystem."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)

    def at(self, where: tuple[bytes, ...]) -> bytes:
        return os.path.join(self.root, *where)

    def run(self, salt: int, name: str, where: tuple[bytes, ...], *rest: Any) -> Any:
        try:
            return getattr(self, name)(salt, self.at(where), *rest)
        except OSError as failure:
            return errno.errorcode[failure.errno or 0]

    def create(self, _salt: int, where: bytes) -> None:
        os.close(os.open(where, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    def mkdir(self, _salt: int, where: bytes) -> None:
        os.mkdir(where, 0o755)

    def symlink(self, _salt: int, where: bytes) -> None:
        os.symlink(b"nowhere", where)

    def link(self, _salt: int, where: bytes, target: tuple[bytes, ...]) -> None:
        os.link(where, self.at(target), follow_symlinks=False)

    def unlink(self, _salt: int, where: bytes) -> None:
        os.unlink(where)

    def rmdir(self, _salt: int, where: bytes) -> None:
        os.rmdir(where)

    def rename(self, _salt: int, where: bytes, target: tuple[bytes, ...], flags: int) -> None:
        if _libc.renameat2(-100, where, -100, self.at(target), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    def opened(self, where: bytes, flags: int) -> int:
        if stat.S_ISLNK(os.lstat(where).st_mode):
            raise OSError(errno.ELOOP, "symlink")
        if stat.S_ISDIR(os.lstat(where).st_mode):
            raise OSError(errno.EISDIR, "directory")
        return os.open(where, flags)

    def write(self, salt: int, where: bytes, offset: int, size: int) -> int:
        fd = self.opened(where, os.O_WRONLY)
        written = os.pwrite(fd, pattern(size, salt), offset)
        os.close(fd)
        return written

    def append(self, salt: int, where: bytes, size: int) -> int:
        fd = self.opened(where, os.O_WRONLY | os.O_APPEND)
        written = os.write(fd, pattern(size, salt))
        os.close(fd)
        return written

    def truncate(self, _salt: int, where: bytes, size: int) -> None:
        os.close(self.opened(where, os.O_WRONLY))
        os.truncate(where, size)

    def fallocate(self, _salt: int, where: bytes, offset: int, size: int, mode: int) -> None:
        fd = self.opened(where, os.O_WRONLY)
        full = [ctypes.c_int(fd), ctypes.c_int(0), ctypes.c_long(offset), ctypes.c_long(size)]
        if mode & ~1:  # punched here by hand: not every host filesystem has it
            end = os.fstat(fd).st_size if mode & 1 else offset + size
            if not mode & 1 and os.fstat(fd).st_size < end:
                os.ftruncate(fd, end)
            if offset < end:
                os.pwrite(fd, bytes(min(offset + size, end) - offset), offset)
        elif not mode and os.fstat(fd).st_size < offset + size:
            os.ftruncate(fd, offset + size)
        os.close(fd)
        del full

    def copy(
        self, _salt: int, where: bytes, sink: tuple[bytes, ...], start: int, to: int, size: int
    ) -> int:
        fd = self.opened(where, os.O_RDONLY)
        target = self.opened(self.at(sink), os.O_WRONLY)
        size = min(size, max(0, os.fstat(fd).st_size - start))
        if os.path.sameopenfile(fd, target) and size and abs(start - to) < size:
            raise OSError(errno.EINVAL, "overlap")
        os.pwrite(target, os.pread(fd, size, start), to)
        os.close(fd)
        os.close(target)
        return size

    def read(self, _salt: int, where: bytes, offset: int, size: int) -> bytes:
        fd = self.opened(where, os.O_RDONLY)
        data = os.pread(fd, size, offset)
        os.close(fd)
        return data

    def list(self, _salt: int, where: bytes) -> list[bytes]:
        if stat.S_ISLNK(os.lstat(where).st_mode):
            raise OSError(errno.ENOTDIR, "symlink")
        return sorted(os.listdir(where))

    def stat(self, _salt: int, where: bytes) -> tuple[int, ...]:
        found = os.lstat(where)
        nlink = found.st_nlink
        if stat.S_ISDIR(found.st_mode):  # not every host filesystem counts subdirectories
            nlink = 2 + sum(entry.is_dir(follow_symlinks=False) for entry in os.scandir(where))
        return shown(found.st_mode, nlink, found.st_size)

    def chmod(self, _salt: int, where: bytes, mode: int) -> None:
        if stat.S_ISLNK(os.lstat(where).st_mode):
            raise OSError(errno.ELOOP, "symlink")
        os.chmod(where, mode)


class Mount:
    """The same calls on one mount."""

    def __init__(self, fs: Filesystem) -> None:
        self.fs = fs

    async def run(self, salt: int, name: str, *rest: Any) -> Any:
        try:
            return await getattr(self, name)(salt, *rest)
        except FilesystemError as failure:
            return errno.errorcode[failure.errno]
        except OSError as failure:
            return errno.errorcode[failure.errno or 0]

    async def walk(self, where: tuple[bytes, ...]) -> Attributes:
        attributes = (await self.fs.getattr(ROOT)).attributes
        for name in where:
            if stat.S_ISLNK(attributes.mode):  # they all dangle
                raise OSError(errno.ENOENT, "dangling")
            entry = await self.fs.lookup(attributes.inode, name)
            if entry.attributes is None:
                raise OSError(errno.ENOENT, "absent")
            self.fs.forget(entry.attributes.inode, 1)
            attributes = entry.attributes
        return attributes

    async def parent(self, where: tuple[bytes, ...]) -> tuple[int, bytes]:
        attributes = await self.walk(where[:-1])
        if stat.S_ISLNK(attributes.mode):
            raise OSError(errno.ENOENT, "dangling")
        if not stat.S_ISDIR(attributes.mode):
            raise OSError(errno.ENOTDIR, "file")
        return attributes.inode, where[-1]

    async def create(self, _salt: int, where: tuple[bytes, ...]) -> None:
        parent = await self.parent(where)
        created = await self.fs.create(*parent, 0o644, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        await self.fs.release(created.opened.handle)
        assert created.entry.attributes is not None
        self.fs.forget(created.entry.attributes.inode, 1)

    async def mkdir(self, _salt: int, where: tuple[bytes, ...]) -> None:
        await self.fs.mkdir(*await self.parent(where), 0o755)

    async def symlink(self, _salt: int, where: tuple[bytes, ...]) -> None:
        await self.fs.symlink(*await self.parent(where), b"nowhere")

    async def link(self, _salt: int, where: tuple[bytes, ...], target: tuple[bytes, ...]) -> None:
        inode = (await self.walk(where)).inode
        await self.fs.link(inode, *await self.parent(target))

    async def unlink(self, _salt: int, where: tuple[bytes, ...]) -> None:
        await self.fs.unlink(*await self.parent(where))

    async def rmdir(self, _salt: int, where: tuple[bytes, ...]) -> None:
        await self.fs.rmdir(*await self.parent(where))

    async def rename(
        self, _salt: int, where: tuple[bytes, ...], target: tuple[bytes, ...], flags: int
    ) -> None:
        await self.fs.rename(*await self.parent(where), *await self.parent(target), flags)

    async def opened(self, where: tuple[bytes, ...], flags: int) -> int:
        attributes = await self.walk(where)
        if stat.S_ISLNK(attributes.mode):
            raise OSError(errno.ELOOP, "symlink")
        return (await self.fs.open(attributes.inode, flags)).handle

    async def write(self, salt: int, where: tuple[bytes, ...], offset: int, size: int) -> int:
        handle = await self.opened(where, os.O_WRONLY)
        written = await self.fs.write(handle, offset, pattern(size, salt))
        await self.fs.release(handle)
        return written

    async def append(self, salt: int, where: tuple[bytes, ...], size: int) -> int:
        handle = await self.opened(where, os.O_WRONLY | os.O_APPEND)
        written = await self.fs.write(handle, 0, pattern(size, salt))
        await self.fs.release(handle)
        return written

    async def truncate(self, _salt: int, where: tuple[bytes, ...], size: int) -> None:
        await self.fs.release(await self.opened(where, os.O_WRONLY))
        await self.fs.setattr((await self.walk(where)).inode, Changes(size=size))

    async def fallocate(
        self, _salt: int, where: tuple[bytes, ...], offset: int, size: int, mode: int
    ) -> None:
        handle = await self.opened(where, os.O_WRONLY)
        await self.fs.fallocate(handle, offset, size, mode)
        await self.fs.release(handle)

    async def copy(
        self,
        _salt: int,
        where: tuple[bytes, ...],
        sink: tuple[bytes, ...],
        start: int,
        to: int,
        size: int,
    ) -> int:
        handle = await self.opened(where, os.O_RDONLY)
        try:
            target = await self.opened(sink, os.O_WRONLY)
            try:
                done = 0
                while count := await self.fs.copy_range(
                    handle, start + done, target, to + done, size - done
                ):
                    done += count
            finally:
                await self.fs.release(target)
        finally:
            await self.fs.release(handle)
        return done

    async def read(self, _salt: int, where: tuple[bytes, ...], offset: int, size: int) -> bytes:
        handle = await self.opened(where, os.O_RDONLY)
        data = await self.fs.read(handle, offset, size)
        await self.fs.release(handle)
        return data

    async def list(self, _salt: int, where: tuple[bytes, ...]) -> list[bytes]:
        opened = await self.fs.opendir((await self.walk(where)).inode)
        names, cookie = [], 0
        while page := await self.fs.readdir(opened.handle, cookie, 2):
            names += [listed.name for listed in page]
            cookie = page[-1].cookie
        await self.fs.releasedir(opened.handle)
        assert names[:2] == [b".", b".."]
        return sorted(names[2:])

    async def stat(self, _salt: int, where: tuple[bytes, ...]) -> tuple[int, ...]:
        found = await self.walk(where)
        return shown(found.mode, found.nlink, found.size)

    async def chmod(self, _salt: int, where: tuple[bytes, ...], mode: int) -> None:
        attributes = await self.walk(where)
        if stat.S_ISLNK(attributes.mode):
            raise OSError(errno.ELOOP, "symlink")
        await self.fs.setattr(attributes.inode, Changes(mode=mode))


async def compare(world: World, host: Host, program: Any) -> None:
    mounts = {number: Mount(node.fs) for number, node in world.nodes.items()}
    for salt, (node, (name, *rest)) in enumerate([*SETUP, *program]):
        expected = host.run(salt, name, *rest)
        found = await mounts[node].run(salt, name, *rest)
        assert found == expected, (salt, node, name, rest)
        world.validate()
    for where in [(), *PATHS]:
        for node, call in ((1, "stat"), (2, "list"), (3, "stat")):
            assert await mounts[node].run(0, call, where) == host.run(0, call, where), where
    for where in PATHS:
        for offset in OFFSETS:
            got = await mounts[1].run(0, "read", where, offset, 8192)
            assert got == host.run(0, "read", where, offset, 8192), (where, offset)
    await world.settle()
    reachable = await world.count_reachable()
    assert reachable == len(world.shelf.objects), "an unlinked inode was not reclaimed"
    for node in world.nodes.values():
        await node.fs.close()
        assert not node.volume.reserved


def run(program: Any, *, seed: int | None, **tuned: Any) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with World(NODES, seed=seed, settings=Settings(**tuned)).running() as world:
                await compare(world, Host(Path(root)), program)

    root = tempfile.mkdtemp(dir="/dev/shm")
    os.chmod(root, 0o755)
    mask = os.umask(0)
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    finally:
        os.umask(mask)
        shutil.rmtree(root)


@settings(max_examples=80)
@given(programs, st.integers(0, 1000))
def test_any_program(program: Any, seed: int) -> None:
    run(program, seed=seed)


@pytest.mark.parametrize("seed", range(8))
def test_long_programs_with_few_inodes_in_memory(seed: int) -> None:
    chance = random.Random(seed)
    kinds: dict[str, list[list[Any]]] = {
        "create": [PATHS],
        "mkdir": [PATHS],
        "link": [PATHS, PATHS],
        "unlink": [PATHS],
        "rmdir": [PATHS],
        "rename": [PATHS, PATHS, [0, 0, 1, 2]],
        "write": [PATHS, OFFSETS, SIZES],
        "append": [PATHS, SIZES],
        "truncate": [PATHS, OFFSETS],
        "read": [PATHS, OFFSETS, SIZES],
        "fallocate": [PATHS, OFFSETS, SIZES, [0, 1, 3, 0x10, 0x11]],
        "copy": [PATHS, PATHS, OFFSETS, OFFSETS, COPIED],
        "chmod": [PATHS, [0o600, 0o4755]],
    }
    program = []
    for turn in range(600):
        if turn % 20 == 0:  # else deletions win
            program += SETUP
        name = chance.choice(list(kinds))
        arguments = [chance.choice(choices) for choices in kinds[name]]
        program.append((chance.randint(1, NODES), (name, *arguments)))
    run(program, seed=seed, inodes=4, dirty_bytes=1 << 16)
