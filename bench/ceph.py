"""CephFS on this machine, while a benchmark runs: one monitor, manager and MDS, three OSDs.

The OSDs keep their objects as they do in production (BlueStore), in a file each instead of a disk.
Without authentication, as the others here; with any host's OSDs for copies, for all are on one.
"""

import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from bench.servers import ADDRESS, COPIES, end, mounted, namespace, retried, run, wait_for

NEEDED = ("ceph", "monmaptool", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds", "ceph-fuse")
_MONITOR = f"[v2:{ADDRESS}:3300,v1:{ADDRESS}:6789]"
_CONFIG = """[global]
fsid = {fsid}
mon host = {monitor}
public addr = {address}
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
admin socket =
log file = {folder}/$name.log
keyring = {folder}/keyring
crash dir = {folder}
osd pool default size = {copies}
osd crush chooseleaf type = 0
bluestore block size = 21474836480
mon data = {folder}/mon
mgr data = {folder}/mgr
mds data = {folder}/mds
osd data = {folder}/osd$id
"""


@contextlib.contextmanager
def ceph(folder: Path) -> Iterator[Path]:
    """Run a filesystem of three copies; yield its mount, by ceph-fuse."""
    for part in ("mon", "mgr", "mds", "mount", *(f"osd{n}" for n in range(COPIES))):
        (folder / part).mkdir(parents=True)
    fsid, config = str(uuid.uuid4()), folder / "ceph.conf"
    config.write_text(
        _CONFIG.format(fsid=fsid, monitor=_MONITOR, address=ADDRESS, folder=folder, copies=COPIES)
    )
    with namespace(folder.name) as inside, contextlib.ExitStack() as stack:

        def command(program: str, *words: str) -> list[str]:
            return [*inside, program, "-c", str(config), *words]

        def serve(program: str, *words: str) -> None:
            with (folder / f"{program}.out").open("ab") as log:
                process = subprocess.Popen(command(program, *words, "-f"), stdout=log, stderr=log)
            stack.callback(end, process)

        told = ["--create", "--clobber", "--fsid", fsid, "--addv", "a", _MONITOR]
        run(["monmaptool", *told, f"{folder}/monmap"])
        run(command("ceph-mon", "-i", "a", "--mkfs", "--monmap", f"{folder}/monmap"))
        serve("ceph-mon", "-i", "a")
        retried(command("ceph", "--connect-timeout=5", "mon", "stat"))
        serve("ceph-mgr", "-i", "x")
        for number in map(str, range(COPIES)):
            name = str(uuid.uuid4())
            run(command("ceph", "osd", "new", name))
            run(command("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", name))
            serve("ceph-osd", "-i", number)
        run(command("ceph", "osd", "pool", "create", "names", "16"))
        run(command("ceph", "osd", "pool", "create", "data", "32"))
        run(command("ceph", "fs", "new", "bench", "names", "data"))
        serve("ceph-mds", "-i", "a")
        place = folder / "mount"
        with mounted(command("ceph-fuse", "-f", str(place)), place) as mount:
            wait_for(lambda: shutil.disk_usage(mount).total > 0, "the OSDs have joined")
            yield mount
