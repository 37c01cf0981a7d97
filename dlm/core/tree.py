"""A root with all its leaves, on the node that masters it. PURE."""

from dlm.core.resource import Resource


class Tree:
    """A root mastered here."""

    __slots__ = (
        "directory",
        "pinned",
        "removing",
        "resources",
        "root",
        "since_s",
        "term",
        "thawing",
        "told",
    )

    def __init__(self, root: bytes, term: int, since_s: float = 0.0) -> None:
        self.root = root
        self.term = term
        self.since_s = since_s  # when it came here
        self.resources: dict[bytes, Resource] = {}  # by leaf; only those with locks
        self.removing = False
        self.thawing = False  # just taken in, and not all of its queues have been looked at
        self.directory = (0, 0)  # the start of the directory node that knows of us
        self.told = 0  # in this epoch
        self.pinned = 0  # the node that it is to stay on; 0: wherever it is used most

    def owners(self) -> set[int]:
        """Return the nodes that have locks here; negative: gone, or leaving."""
        return {copy.node for resource in self.resources.values() for copy in resource.copies()}

    def locks(self) -> int:
        """Count the locks."""
        return sum(
            len(resource.granted) + len(resource.converting) + len(resource.waiting)
            for resource in self.resources.values()
        )

    def reign(self, term: int) -> None:
        """Begin the term."""
        self.term = term
        for resource in self.resources.values():
            resource.term = term
