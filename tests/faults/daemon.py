"""mount.clusterfs for tests: `daemon.py PLANT CONFIG MOUNT ...`; PLANT is `none`, or a bug.

A daemon that gets SIGRTMIN writes what each of its tasks waits for to its log.
"""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import trio

from clusterfs.cli import mount
from clusterfs.store.disk import DirectoryDisk
from tests.faults import plants

DUMP = signal.Signals(signal.SIGRTMIN)


def tasks(task: trio.lowlevel.Task, depth: int = 0) -> Iterator[str]:
    """Yield one line for each task under this one: its name, and the frames it waits in."""
    frames = [f"{frame.f_code.co_name}:{line}" for frame, line in task.iter_await_frames()]
    yield "  " * depth + f"{task.name}: " + " > ".join(frames[-8:])
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from tasks(child, depth + 1)


def dump(_number: int, _frame: Any) -> None:
    root = trio.lowlevel.current_root_task()
    if root is not None:
        print("\n".join(tasks(root)), file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Bricks of tests are small: keep little of their filesystem free.
    assert DirectoryDisk.__init__.__kwdefaults__
    DirectoryDisk.__init__.__kwdefaults__["reserve_bytes"] = 16 << 20
    signal.signal(DUMP, dump)
    plants.sow(sys.argv.pop(1))
    mount.main()
