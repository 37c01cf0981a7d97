"""The installation of three hosts in docs/operations.md, its commands run exactly as they stand."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import wait
from tests.faults.hosts import Network
from tests.faults.walkthrough import ROOT, Host, blocks, hosts_meant, write_commands

DOCUMENT = (ROOT / "docs" / "operations.md").read_text()
HEADING = "Three hosts, from bare Debian to fstab"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    with contextlib.ExitStack() as stack:
        network = Network(tmp_path, 3)
        stack.callback(network.close)
        write_commands(tmp_path)
        found = {}
        for number in (1, 2, 3):
            found[f"n{number}"] = host = Host(network, number, tmp_path)
            stack.callback(host.close)
        yield found


@pytest.mark.timeout(1800)
def test_three_hosts_are_installed_as_the_document_says(hosts: dict[str, Host]) -> None:
    for where, commands in blocks(DOCUMENT, HEADING):
        for name in hosts_meant(where, list(hosts)):
            hosts[name].fetch_post()
            hosts[name].run(commands)

    def ready() -> bool:
        status = json.loads(hosts["n2"].run("clusterfs status --json /mnt/volume"))
        return bool(status["synced"]) and len(status["members"]) == len(hosts)

    wait(ready, "three members are in sync")
    hosts["n1"].run("echo hello > /mnt/volume/file")
    assert hosts["n3"].run("cat /mnt/volume/file").strip() == "hello"
    hosts["n3"].run("umount /mnt/volume")
    # umount returns before the daemon has left the cluster: until then the port is taken.
    hosts["n3"].run("for n in $(seq 300); do mount /mnt/volume && break || sleep 1; done 2>&1")
    assert hosts["n3"].run("cat /mnt/volume/file").strip() == "hello"
