"""What a node's lock traffic cost: messages per operation. PURE.

Messages that a change of members causes belong to no operation and are left out of the ratios.
"""

from collections.abc import Iterator, Mapping

from clusterfs.cli.locks.picture import Node

_RECOVERY = ("Names", "Masters", "Locks", "Seats", "Reigns", "Verify")
_ASKED = ("lock", "convert")
_TOLD = ("demote", "unlock")


def costs(node: Node) -> Iterator[str]:
    """Yield one line for each ratio that this node's counters allow."""
    sent, received = _total(node.sent), _total(node.received)
    done = node.operations
    yield f"messages of operations: {sent:,} sent, {received:,} received"
    moved = node.migration
    if moved:
        yield (
            f"trees: {moved['left']:,} went to other masters, {moved['taken']:,} came, "
            f"{moved['called_off']:,} stayed after all; "
            f"one was frozen for {moved['longest_s']:.3f} s at most"
        )
    if not done:
        return
    yield ", ".join(f"{count:,} {operation}" for operation, count in sorted(done.items()))
    total = sum(done.get(operation, 0) for operation in (*_ASKED, *_TOLD))
    if total:
        yield f"messages per operation: {sent / total:.3f} sent, {received / total:.3f} received"
    asked = sum(done.get(operation, 0) for operation in _ASKED)
    if asked:
        requests = sum(node.sent.get(kind, 0) for kind in ("Request", "Convert"))
        yield f"of {asked:,} locks and conversions asked for, {requests / asked:.1%} left this node"


def _total(messages: Mapping[str, int]) -> int:
    return sum(count for kind, count in messages.items() if kind not in _RECOVERY)
