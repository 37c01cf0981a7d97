"""Serves a MemoryFilesystem through the real FUSE layer; told what to do by lines of JSON on stdin.

    server.py DIRECTORY REPORT_FILE

A request is {"do": "park", ...}; each gets one line of JSON as the answer.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from clusterfs.fuse.beat import Beat
from clusterfs.fuse.supervisor import ReadyPipe, run_supervised


def main(beat: Beat, ready: ReadyPipe) -> int:
    import trio  # noqa: PLC0415  the supervisor goes without

    trio.run(serve, sys.argv[1], beat, ready)
    return 0


async def serve(directory: str, beat: Beat, ready: ReadyPipe) -> None:
    import structlog  # noqa: PLC0415
    import trio  # noqa: PLC0415
    from memory_filesystem import MemoryFilesystem  # noqa: PLC0415

    from clusterfs.fuse.cached import CachedInodes  # noqa: PLC0415
    from clusterfs.fuse.mount import Mount, MountOptions  # noqa: PLC0415
    from clusterfs.fuse.operations import Operations  # noqa: PLC0415

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    filesystem = MemoryFilesystem()
    mount = Mount(directory, MountOptions(fsname="memory"))
    cached = CachedInodes(beat)
    mount.attach(Operations(filesystem, cached))  # type: ignore[arg-type]
    mount.share_with_supervisor(beat)
    beat.identify(7, 1234)
    service = Service(filesystem, mount, cached, beat)

    async def renew() -> None:
        while True:
            beat.renew(service.lease_s)
            await trio.sleep(0.05)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renew)
            nursery.start_soon(service.obey)
            await nursery.start(stop_after, mount.run, nursery.cancel_scope)
            ready.ready()
            say({"pid": os.getpid(), "supervisor": os.getppid()})
    finally:
        mount.close()


def say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def stop_after(run: Any, scope: Any, *, task_status: Any) -> None:
    await run(task_status=task_status)
    scope.cancel()


class Service:
    def __init__(self, filesystem: Any, mount: Any, cached: Any, beat: Beat) -> None:
        self.filesystem = filesystem
        self.mount = mount
        self.cached = cached
        self.beat = beat
        self.lease_s = 1000.0

    async def obey(self) -> None:
        import trio  # noqa: PLC0415

        lines = b""
        async with trio.lowlevel.FdStream(os.dup(0)) as stream, trio.open_nursery() as nursery:
            async for data in stream:
                lines += data
                while b"\n" in lines:
                    line, lines = lines.split(b"\n", 1)
                    nursery.start_soon(self.answer, json.loads(line))

    async def answer(self, request: dict[str, Any]) -> None:
        todo = getattr(self, "do_" + request.pop("do"))
        say(await todo(**request))

    async def do_park(self, tag: str) -> None:
        self.filesystem.parked.add(tag)

    async def do_unpark(self, tag: str) -> None:
        self.filesystem.unpark(tag)

    async def do_waiting(self, tag: str) -> int:
        return int(self.filesystem.waiting[tag])

    async def do_events(self) -> list[str]:
        events, self.filesystem.events = self.filesystem.events, []
        return list(events)

    async def do_change(self, number: int, text: str, offset: int = 0) -> None:
        """Change a file as another node would: behind the kernel's back."""
        data = text.encode()
        self.filesystem.nodes[number].data[offset : offset + len(data)] = data

    async def do_invalidate_pages(self, number: int, ranges: list[tuple[int, int]]) -> None:
        await self.mount.kernel.invalidate_pages(number, ranges)

    async def do_invalidate_attributes(self, number: int) -> None:
        await self.mount.kernel.invalidate_attributes(number)

    async def do_drop_dentries(self) -> None:
        await self.mount.kernel.drop_dentries()

    async def do_lease(self, seconds: float) -> None:
        self.lease_s = seconds
        self.beat.renew(seconds)

    async def do_drops(self) -> int:
        return self.beat.drops

    async def do_cached(self) -> int:
        self.cached.validate()
        return len(self.cached)

    async def do_lookups(self) -> dict[str, int]:
        return {str(number): count for number, count in self.filesystem.lookups.items()}

    async def do_negotiated(self) -> dict[str, Any]:
        from clusterfs.fuse.binding import native  # noqa: PLC0415

        return {
            **native.negotiated(),
            "hooked": native.hooked(),
            "dentries_can_be_dropped": self.mount.kernel.dentries_can_be_dropped,
        }

    async def do_detach(self) -> None:
        await self.mount.detach()

    async def do_exit_badly(self) -> None:
        os._exit(3)


if __name__ == "__main__":
    report_path = Path(sys.argv[2])

    def report(node: int, incarnation: int) -> None:
        mounted = f" {sys.argv[1]} " in Path("/proc/self/mountinfo").read_text()
        report_path.write_text(json.dumps([node, incarnation, mounted]))

    sys.exit(run_supervised(main, foreground=True, report=report))
