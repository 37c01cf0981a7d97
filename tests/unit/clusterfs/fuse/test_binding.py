import subprocess
import sys

from clusterfs.fuse.binding import native


def run(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )


def test_nothing_is_hooked_before_there_is_a_mount() -> None:
    assert not native.hooked()
    assert native.session_fd() == -1
    assert not native.current_is_page_io()


def test_pyfuse3_must_not_come_first() -> None:
    ended = run("import pyfuse3; import clusterfs.fuse.binding")
    assert ended.returncode == 1
    assert "imported before clusterfs.fuse.binding" in ended.stderr


def test_the_supervisor_loads_neither_trio_nor_pyfuse3() -> None:
    ended = run(
        "import sys, clusterfs.fuse.supervisor\n"
        "print(sorted({'trio', 'pyfuse3', 'msgspec', 'structlog'} & set(sys.modules)))"
    )
    assert ended.stdout == "[]\n"
