"""Messages on their way out: all that one transition says to a peer goes in one batch."""

from collections import Counter
from collections.abc import Callable

from dlm.messages import Message, encode, encode_all

_BATCH = 500  # messages in one frame


class Outbox:
    """What is to be sent when the transition is done."""

    def __init__(self, send: Callable[[int, bytes], None]) -> None:
        self._send = send
        self._waiting: dict[int, list[Message]] = {}  # by peer
        self.said: Counter[type[Message]] = Counter()
        self.batches = 0

    def put(self, node: int, message: Message) -> None:
        """Let a message go with the next batch to that node."""
        self.said[type(message)] += 1
        if node in self._waiting:
            self._waiting[node].append(message)
        else:
            self._waiting[node] = [message]

    def send(self) -> None:
        """Send everything."""
        waiting, self._waiting = self._waiting, {}
        for node, messages in waiting.items():
            if len(messages) == 1:
                self.batches += 1
                self._send(node, encode(messages[0]))
                continue
            for first in range(0, len(messages), _BATCH):
                self.batches += 1
                self._send(node, encode_all(messages[first : first + _BATCH]))
