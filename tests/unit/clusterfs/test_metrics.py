"""Metrics follow Prometheus' conventions, and whatever the dashboard shows exists."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from clusterfs.errors import SetupError
from clusterfs.metrics import CONNECTED, HEALTH, METRICS, families, serving

DASHBOARD = Path(__file__).parents[3] / "contrib" / "grafana" / "clusterfs.json"
UNITS = ("_seconds", "_bytes", "_total")


def snapshot() -> dict[str, Any]:
    found: dict[str, Any] = {"codes": [{"code": "NODE_OUT", "severity": "error"}]}
    for number, row in enumerate(METRICS, 1):
        place = found
        *folders, last = row.path.split(".")
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = number
    found["statistics"]["mesh"]["peers"] = {2: {"connected": True}, 3: {"connected": False}}
    return found


def test_names_are_unique_and_say_their_units() -> None:
    names = [row.name for row in METRICS]
    assert len(set(names)) == len(names)
    for row in METRICS:
        assert re.fullmatch(r"clusterfs_[a-z_]+", row.name)
        assert row.help.endswith(".")
        if row.path.endswith(("_bytes", "_blocks", "_bytes_written", ".total", ".free")):
            assert "_bytes" in row.name, row
        if row.path.endswith("_s"):
            assert row.name.endswith("_seconds"), row


def test_what_a_node_has_not_is_left_out() -> None:
    numbers = snapshot()
    del numbers["statistics"]["store"]
    numbers["status"]["space"] = None
    names = {family.name for family in families(numbers)}
    assert "clusterfs_brick_free_bytes" not in names
    assert "clusterfs_lease_left_seconds" in names


async def test_a_scrape_gets_every_number(unused_port: int) -> None:
    address = f"127.0.0.1:{unused_port}"

    def scrape() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=300) as answer:
            return str(answer.read().decode())

    with serving(address, snapshot):
        text = await trio.to_thread.run_sync(scrape)
        with pytest.raises(SetupError, match="metrics: cannot listen"), serving(address, snapshot):
            pass
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for number, row in enumerate(METRICS, 1):
        assert values[row.name,] == number * row.factor
    assert values[HEALTH, "NODE_OUT", "error"] == 1
    assert (values[CONNECTED, "2"], values[CONNECTED, "3"]) == (1, 0)


def test_the_dashboard_shows_metrics_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    shown = set(re.findall(r"clusterfs_\w+", " ".join(expressions)))
    assert shown
    assert shown <= {row.name for row in METRICS} | {HEALTH, CONNECTED}
    for expression in expressions:
        assert ("_total" in expression) == ("rate(" in expression), expression
