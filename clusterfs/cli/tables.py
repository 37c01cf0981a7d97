"""Replies of the daemon as tables for people; the JSON is for programs.

A status reply: name, node, incarnation, cluster, epoch, lost, lease_left_s, mount, replicas,
groups, stopped_groups, absent, uptime_s, members [{node, name, incarnation, state, address,
in_sync, syncing}] (groups are counted), synced, space {total, free}, health [sentence],
codes [{code, severity, text}],
resync {...}, store {...}.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table


def status(reply: Mapping[str, Any], console: Console) -> None:
    """Print one node's status."""
    facts = Table.grid(padding=(0, 2))
    for key in ("name", "node", "incarnation", "cluster", "epoch", "mount"):
        if key in reply:
            facts.add_row(key, str(reply[key]))
    facts.add_row("lease left", f"{reply['lease_left_s']:.1f} s")
    facts.add_row("in sync", _yes(reply["synced"]))
    if space := reply.get("space"):
        facts.add_row("space", f"{decimal(space['free'])} free of {decimal(space['total'])}")
    for finding in reply.get("codes", ()):
        colour = "red" if finding["severity"] == "error" else "yellow"
        facts.add_row("health", f"[{colour}]{finding['code']}[/]  {finding['text']}")
    for sentence in reply.get("health", ()):
        facts.add_row("health", f"[red]{sentence}[/]")
    if absent := reply.get("absent"):
        facts.add_row("absent", ", ".join(f"node {node}" for node in absent))
    if reply["stopped_groups"]:
        facts.add_row("stopped", f"[red]{reply['stopped_groups']} groups wait for their nodes[/]")
    console.print(facts)
    console.print(_members(reply["members"], reply["groups"]))
    for title in ("resync", "store"):
        if numbers := reply.get(title):
            console.print(_numbers(title, numbers))


def members(reply: Mapping[str, Any], console: Console) -> None:
    """Print every node that ever joined."""
    table = Table(title=f"cluster {reply['cluster']}, {reply['replicas']} copies")
    for heading in ("node", "state", "address", "weight", "groups in sync"):
        table.add_column(heading)
    for node in reply["nodes"]:
        groups = f"{node['in_sync']} of {node['wanted']}" if node["storage"] else "no storage"
        if node["syncing"]:
            groups += f", {node['syncing']} syncing"
        if resync := node["resync"]:
            groups += f": {resync['part']:.0%}, {decimal(resync['pulled_bytes'])}"
            if resync["eta_s"] is not None:
                groups += f", {resync['eta_s']:.0f} s left"
        if node["retiring"]:
            groups += ", retiring"
        if node["dropped"]:
            groups += ", [red]out until its next start[/]"
        if node["state"] == "away":
            groups = f"the last copy of {node['in_sync']}" if node["in_sync"] else "-"
        weight = str(node["weight"]) if node["storage"] else "-"
        table.add_row(node["name"], node["state"], node["address"] or "-", weight, groups)
    console.print(table)
    if reply["stopped_groups"]:
        console.print(f"[red]{reply['stopped_groups']} groups wait for their nodes[/]")


def cluster(reply: Mapping[str, Any], console: Console) -> None:
    """Print every node of a development cluster."""
    table = Table(title=reply["folder"])
    for heading in ("node", "process", "pid", "mounted", "epoch", "lease left", "in sync"):
        table.add_column(heading)
    for node in reply["nodes"]:
        daemon = node["daemon"] or {}
        lease = f"{daemon['lease_left_s']:.1f} s" if daemon else "-"
        table.add_row(
            node["name"],
            node["state"],
            str(node.get("pid", "-")),
            _yes(node["mounted"]),
            str(daemon.get("epoch", "-")),
            lease,
            _yes(daemon["synced"]) if daemon else "-",
        )
    console.print(table)


def _members(members: list[Mapping[str, Any]], total: int) -> Table:
    table = Table(title="members")
    for heading in ("node", "name", "incarnation", "address", "state", "groups in sync"):
        table.add_column(heading)
    for member in members:
        groups = f"{member['in_sync']} of {total}"
        if member["syncing"]:
            groups += f", {member['syncing']} syncing"
        shown = [member[key] for key in ("node", "name", "incarnation", "address", "state")]
        table.add_row(*map(str, shown), groups)
    return table


def _numbers(title: str, numbers: Mapping[str, Any]) -> Table:
    table = Table(title=title)
    table.add_column("what")
    table.add_column("value", justify="right")
    for key, value in sorted(numbers.items()):
        if isinstance(value, Mapping):
            continue
        shown = decimal(value) if key.endswith("_bytes") else str(value)
        table.add_row(key.replace("_", " "), shown)
    return table


def _yes(value: object) -> str:
    return "[green]yes[/]" if value else "[red]no[/]"
