"""The yardstick: a pyfuse3 filesystem that does nothing, in a process of its own, under fio.

What clusterfs adds to a read or write is judged against this. It has one file, `image`, whose
handle is direct_io; reads return zeros and writes are counted as done. `--hooked` puts the native
completion of clusterfs under pyfuse3, to see what that costs or wins.

    python bench/micro/noop_fuse.py [--hooked] [--seconds N]       prints one JSON object
    python bench/micro/noop_fuse.py --serve DIR [--hooked]         only mounts, until unmounted
"""

import argparse
import errno
import json
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import trio

IMAGE_BYTES = 1 << 30
JOBS = {
    "randread 4k": ("randread", "4k", 1),
    "randwrite 4k": ("randwrite", "4k", 1),
    "randread 4k x16": ("randread", "4k", 16),
    "randwrite 4k x16": ("randwrite", "4k", 16),
    "read 1M": ("read", "1M", 4),
    "write 1M": ("write", "1M", 4),
}


def load(*, hooked: bool) -> Any:
    """Import pyfuse3, with clusterfs' native module under it or without."""
    if hooked:
        from clusterfs.fuse.binding import pyfuse3  # noqa: PLC0415
    else:
        import pyfuse3  # type: ignore[no-redef]  # noqa: PLC0415
    return pyfuse3


def operations(pyfuse3: Any) -> Any:  # noqa: C901  one class with one-line methods
    """Return the handlers of a filesystem with one bottomless file."""
    zeros = memoryview(bytes(1 << 20))

    def attributes(inode: int) -> Any:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = stat.S_IFDIR | 0o755
        else:
            entry.st_mode = stat.S_IFREG | 0o666
            entry.st_size = IMAGE_BYTES
        entry.attr_timeout = entry.entry_timeout = 1.0
        return entry

    class Noop(pyfuse3.Operations):  # type: ignore[misc]
        async def getattr(self, inode: int, _ctx: Any) -> Any:
            return attributes(inode)

        async def setattr(self, inode: int, *_: Any) -> Any:
            return attributes(inode)

        async def lookup(self, _parent: int, name: bytes, _ctx: Any) -> Any:
            if name != b"image":
                raise pyfuse3.FUSEError(errno.ENOENT)
            return attributes(2)

        async def open(self, inode: int, _flags: int, _ctx: Any) -> Any:
            return pyfuse3.FileInfo(fh=inode, direct_io=True, keep_cache=False)

        async def read(self, _fh: int, _offset: int, size: int) -> Any:
            return zeros[:size]

        async def write(self, _fh: int, _offset: int, data: bytes) -> int:
            return len(data)

        async def flush(self, _fh: int) -> None: ...
        async def release(self, _fh: int) -> None: ...
        async def fsync(self, _fh: int, _datasync: object) -> None: ...
        async def forget(self, _inodes: Any) -> None: ...

    return Noop()


def serve(directory: str, *, hooked: bool) -> None:
    """Mount at `directory` and answer until it is unmounted."""
    pyfuse3 = load(hooked=hooked)
    pyfuse3.init(operations(pyfuse3), directory, {"fsname=noop", "default_permissions"})
    print("mounted", flush=True)
    trio.run(pyfuse3.main)
    pyfuse3.close(unmount=False)


def fio(path: Path, pattern: str, block: str, depth: int, seconds: int) -> dict[str, float]:
    """Run one fio job with O_DIRECT; returns operations and MiB a second."""
    command = [
        "fio", "--name=job", f"--filename={path}", f"--rw={pattern}", f"--bs={block}",
        f"--iodepth={depth}", "--ioengine=libaio" if depth > 1 else "--ioengine=psync",
        "--direct=1", f"--size={IMAGE_BYTES}", "--time_based", f"--runtime={seconds}",
        "--allow_file_create=0", "--output-format=json",
    ]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    job = json.loads(output[output.index("{") :])["jobs"][0]
    side = job["read"] if "read" in pattern else job["write"]
    return {"iops": round(side["iops"]), "mib_s": round(side["bw_bytes"] / 2**20, 1)}


def measure(seconds: int, *, hooked: bool) -> dict[str, dict[str, float]]:
    """Serve from a child process and run every job against it."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, __file__, "--serve", directory, *["--hooked"][: int(hooked)]]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"mounted\n"
            try:
                image = Path(directory) / "image"
                return {name: fio(image, *job, seconds) for name, job in JOBS.items()}
            finally:
                subprocess.run(["umount", "-l", directory], check=False)


def main() -> None:
    """Parse the command line and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hooked", action="store_true")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--serve", metavar="DIR")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(str(Path(arguments.serve).resolve()), hooked=arguments.hooked)
    else:
        print(json.dumps(measure(arguments.seconds, hooked=arguments.hooked), indent=2))


if __name__ == "__main__":
    main()
