"""What systemd hears: ready once, alive often enough, nothing without it."""

import configparser
import re
import socket
from pathlib import Path

import pytest

from clusterfs.service_manager import ServiceManager

UNITS = sorted((Path(__file__).parents[3] / "contrib" / "systemd").glob("*.service"))


def test_it_says_that_it_is_ready_and_feeds_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(300)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "6000000")
        manager = ServiceManager()
        manager.ready("serves")
        for now_s in (100.0, 100.1, 101.9, 102.0, 103.0):
            manager.alive(now_s)
        manager.stopping()
        heard = [systemd.recv(100) for _ in range(4)]
    assert heard == [b"READY=1\nSTATUS=serves", b"WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    manager = ServiceManager()
    manager.ready("serves")
    manager.alive(1.0)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_wait_for_the_daemon_and_watch_it(unit: Path) -> None:
    parsed = configparser.ConfigParser(interpolation=None, strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(unit)
    service = parsed["Service"]
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "all")
    assert int(service["WatchdogSec"]) > 30
    assert " -f " in service["ExecStart"]


def test_there_are_units() -> None:
    assert len(UNITS) == 2


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_run_what_the_document_installs(unit: Path) -> None:
    document = (UNITS[0].parents[2] / "docs" / "operations.md").read_text()
    installed = set()
    for sources, folder in re.findall(r"^ln -sf (/opt[^\n]*) (/\S+)/$", document, re.MULTILINE):
        installed |= {f"{folder}/{Path(source).name}" for source in sources.split()}
    lines = re.findall(r"^Exec\w+=(\S+)", unit.read_text(), re.MULTILINE)
    assert lines
    assert set(lines) <= installed
