"""What a daemon inherits that takes a mount over; written on its command line.

Imports nothing big: the supervisor writes it.
"""

import json
from typing import NamedTuple


class Inheritance(NamedTuple):
    """Descriptors that are open in the new process, and what the kernel was told."""

    memory: int  # what daemon and supervisor share
    line: int  # the socket to the supervisor
    session: int  # /dev/fuse
    connection: int
    supervisor: int  # its pid
    request: str  # of FUSE_INIT, in hexadecimal digits
    reply: str

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """Return those that the new process needs."""
        return self.memory, self.line, self.session

    def text(self) -> str:
        """Return it as one word."""
        return json.dumps(self, separators=(",", ":"))


def inherited(text: str) -> Inheritance:
    """Read what `text` wrote."""
    return Inheritance(*json.loads(text))
