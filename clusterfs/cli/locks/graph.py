"""Who blocks whom, as a graph: edges from those who wait to those they wait for. PURE.

Vertices are system calls, owners or locks, see waits.py. A cycle is a strongly connected component
of more than one vertex, or a vertex that waits for itself (Tarjan 1972, without recursion).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from clusterfs.cli.locks.picture import Picture, printable
from clusterfs.cli.locks.waits import Party, Wait, names_of, waits


class Edge(NamedTuple):
    """One who waits, and one it waits for."""

    waiter: Party
    blocker: Party
    lock: str  # its path or name
    wanted: str
    held: str | None
    why: str
    wait_s: float
    in_cycle: bool


def edges(picture: Picture) -> list[Edge]:
    """Return the graph, the longest waits first."""
    found = waits(picture)
    component = _components(_successors(found))
    return [
        Edge(
            wait.party,
            blocker.party,
            wait.path or printable(*wait.name),
            wait.wanted,
            blocker.mode,
            blocker.why,
            wait.wait_s,
            wait.party == blocker.party
            or component[wait.party] == component.get(blocker.party, -1),
        )
        for wait in found
        for blocker in wait.blockers
    ]


def text(picture: Picture) -> str:
    """Return one line for each edge, those of cycles marked."""
    names, graph = names_of(picture), edges(picture)
    lines = [_line(edge, names) for edge in graph]
    parties = len({edge.waiter for edge in graph if edge.in_cycle})
    if parties:
        lines.append(f"CYCLE: the {parties} marked with ! wait for each other")
    return "".join(f"{line}\n" for line in lines or ["nobody waits"])


def dot(picture: Picture) -> str:
    """Return the graph for Graphviz; cycles are red."""
    names, graph = names_of(picture), edges(picture)
    lines = ["digraph locks {", "  rankdir=LR; node [shape=box fontname=monospace];"]
    red = {party for edge in graph if edge.in_cycle for party in (edge.waiter, edge.blocker)}
    parties = list(dict.fromkeys(p for edge in graph for p in (edge.waiter, edge.blocker)))
    for number in sorted({party.node for party in parties}):
        lines.append(f"  subgraph cluster_{number} {{ label={_quoted(_node(number, names))};")
        lines += [
            f"    p{place} [label={_quoted(party.label)}{' color=red' if party in red else ''}];"
            for place, party in enumerate(parties)
            if party.node == number
        ]
        lines.append("  }")
    for edge in graph:
        label = _quoted(f"{edge.wanted} on {edge.lock}\n{edge.why} {edge.held or ''}".rstrip())
        style = " color=red penwidth=2" if edge.in_cycle else ""
        source, target = parties.index(edge.waiter), parties.index(edge.blocker)
        lines.append(f"  p{source} -> p{target} [label={label}{style}];")
    return "\n".join([*lines, "}"]) + "\n"


def _line(edge: Edge, names: Mapping[int, str]) -> str:
    mark = "! " if edge.in_cycle else "  "
    waiter = f"{_node(edge.waiter.node, names)} {edge.waiter.label}"
    blocker = f"{_node(edge.blocker.node, names)} {edge.blocker.label}".rstrip()
    held = f" {edge.held}" if edge.held else ""
    wanted = f"waits {edge.wait_s:.3f} s for {edge.wanted} on {edge.lock}"
    return f"{mark}{waiter} {wanted}: {blocker} {edge.why}{held}"


def _node(number: int, names: Mapping[int, str]) -> str:
    return names.get(number, f"node {number}")


def _quoted(label: str) -> str:
    escaped = label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _successors(found: Iterable[Wait]) -> dict[Party, list[Party]]:
    successors: dict[Party, list[Party]] = {}
    for wait in found:
        successors.setdefault(wait.party, []).extend(b.party for b in wait.blockers)
    return successors


def _components(graph: Mapping[Party, list[Party]]) -> dict[Party, int]:
    """Return the number of each vertex's strongly connected component."""
    order: dict[Party, int] = {}
    low: dict[Party, int] = {}
    component: dict[Party, int] = {}
    path: list[Party] = []
    for start in graph:
        if start in order:
            continue
        work = [(start, iter(graph[start]))]
        order[start] = low[start] = len(order)
        path.append(start)
        while work:
            vertex, successors = work[-1]
            following = next((s for s in successors if s not in order or s not in component), None)
            if following is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[vertex])
                if low[vertex] == order[vertex]:
                    _close(vertex, path, component)
            elif following in order:
                low[vertex] = min(low[vertex], order[following])
            else:
                order[following] = low[following] = len(order)
                path.append(following)
                work.append((following, iter(graph.get(following, ()))))
    return component


def _close(vertex: Party, path: list[Party], component: dict[Party, int]) -> None:
    number = len(component)
    while True:
        member = path.pop()
        component[member] = number
        if member == vertex:
            return
