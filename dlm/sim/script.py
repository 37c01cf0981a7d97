"""Lock scenarios as text: commands, each followed by what it makes the nodes say and do.

    nodes 3                     start n1, n2, n3 with one view among them, and settle
    lock n1 a/x EX VALBLK       ask for a lock; it is called n1:a/x from then on (`as NAME`: else),
                                for a transaction with `by NAME` (and its priority: `by NAME:2`)
    lock n1 a EX new            the same for a root that n1 has just made up
    convert n1:a/x PR lvb=text  change its mode; flags and LVB as given
    unlock n1:a/x [lvb=text]    drop it
    cancel n1:a/x               withdraw what it waits for
    deliver n1 n2               let the oldest message on that link arrive
    settle                      let all messages arrive
    crash n1                    stop a node; what it sent and nobody received is lost
    start n1                    start a node (again), with no view yet
    view                        tell all nodes who is alive
    move n1 a n2                let the master of a root hand its tree to another node
    wait SECONDS                let time pass on all nodes
    show                        each node's locks, trees and directory entries

Output lines are indented by two spaces. `python -m dlm.sim.script FILE...` rewrites them in place.
"""

import enum
import sys
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from dlm.core.lockspace import LockspaceCore
from dlm.effects import Answered, Complete, Effect, Heard, Send
from dlm.errors import LockError
from dlm.events import (
    Acquire,
    Change,
    Enter,
    Event,
    Lock,
    Migrate,
    Name,
    Owner,
    Received,
    Release,
    Tick,
    Withdraw,
)
from dlm.messages import (
    Cancel,
    Chase,
    Confirm,
    Convert,
    Demote,
    Message,
    Probe,
    Record,
    Reign,
    Seat,
    Status,
    Unlock,
)
from dlm.modes import Flags, Mode
from dlm.moving import Carried, Start, Worth

INDENT = "  "
_HIDDEN = frozenset(
    {
        "epoch",
        "term",
        "tag",
        "incarnation",
        "lock",
        "flags",
        "owner",
        "lvb_sequence",
        "root",
        "leaf",
        "former",
    }
)
_DULL = {
    "story": "",
    "demoted": False,
    "lvb_valid": True,
    "last": True,
    "consents": True,
    "pinned": 0,
}
_FROM_OWNER = (Convert, Demote, Unlock, Cancel)


class Script:
    """The nodes, the links between them, and what they said since the last command."""

    def __init__(self) -> None:
        self.cores: dict[int, LockspaceCore] = {}
        self.links: dict[tuple[int, int], deque[Message]] = {}
        self.locks: dict[str, tuple[int, Lock]] = {}
        self._output: list[str] = []
        self._epoch = 0
        self._incarnation = 0
        self._now_s = 0.0
        self._owners: dict[str, Owner] = {}
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "nodes": self._nodes,
            "lock": self._lock,
            "convert": self._convert,
            "unlock": self._unlock,
            "cancel": self._cancel,
            "deliver": self._deliver,
            "settle": self._settle,
            "wait": self._wait,
            "crash": self._crash,
            "start": self._start,
            "view": self._view,
            "move": self._move,
            "show": self._show,
        }

    def run(self, line: str) -> list[str]:
        """Carry out one command and return what came of it."""
        self._output = []
        command, *words = line.split()
        self._commands[command](words)
        for core in self.cores.values():
            core.validate()
        return self._output

    def _nodes(self, words: list[str]) -> None:
        for node in range(1, int(words[0]) + 1):
            self._start([f"n{node}"])
        self._view([])
        self._settle([])
        self._output.clear()

    def _lock(self, words: list[str]) -> None:
        node, name = int(words[0][1:]), words[1]
        label = f"{words[0]}:{name}"
        if "as" in words:
            at = words.index("as")
            label = words[at + 1]
            del words[at : at + 2]
        owner: Owner | str = ""
        if "by" in words:
            at = words.index("by")
            who, _, priority = words[at + 1].partition(":")
            owner = self._owners.setdefault(who, Owner(who, priority=int(priority or 0)))
            del words[at : at + 2]
        root, _, leaf = name.partition("/")
        new = "new" in words
        flags, _ = _options([word for word in words[3:] if word != "new"])
        lock = Lock(Name(root.encode(), leaf.encode()), owner, label)
        self.locks[label] = node, lock
        self._act(node, Acquire(lock, Mode[words[2]], flags, new))

    def _convert(self, words: list[str]) -> None:
        node, lock = self.locks[words[0]]
        flags, lvb = _options(words[2:])
        self._act(node, Change(lock, Mode[words[1]], flags, lvb))

    def _unlock(self, words: list[str]) -> None:
        node, lock = self.locks[words[0]]
        self._act(node, Release(lock, *_options(words[1:])))

    def _cancel(self, words: list[str]) -> None:
        node, lock = self.locks[words[0]]
        self._act(node, Withdraw(lock))

    def _deliver(self, words: list[str]) -> None:
        source, target = (int(word[1:]) for word in words)
        message = self.links[source, target].popleft()
        if target in self.cores:
            self._say(f"n{source} > n{target}  {self._describe(message, source, target)}")
            self._act(target, Received(source, message))

    def _settle(self, _words: list[str]) -> None:
        while any(self.links.values()):
            for (source, target), link in sorted(self.links.items()):
                if link:
                    self._deliver([f"n{source}", f"n{target}"])

    def _crash(self, words: list[str]) -> None:
        node = int(words[0][1:])
        del self.cores[node]
        for link in [link for link in self.links if node in link]:
            del self.links[link]

    def _start(self, words: list[str]) -> None:
        node = int(words[0][1:])
        self._incarnation += 1
        self.cores[node] = LockspaceCore(node, self._incarnation)

    def _move(self, words: list[str]) -> None:
        node, root, target = int(words[0][1:]), words[1].encode(), int(words[2][1:])
        self._act(node, Migrate(root, target))

    def _view(self, _words: list[str]) -> None:
        self._epoch += 1
        members = {node: core.here.incarnation for node, core in sorted(self.cores.items())}
        for node in members:
            self._act(node, Enter(self._epoch, members, {}, self._epoch - 1))

    def _wait(self, words: list[str]) -> None:
        self._now_s += float(words[0])
        for node, core in self.cores.items():
            if core.deadline_s <= self._now_s:
                self._act(node, Tick())

    def _show(self, _words: list[str]) -> None:
        for node, core in sorted(self.cores.items()):
            for root, entry in core.directory.entries.items():
                self._say(f"n{node} directory: {root.decode()} is mastered by n{entry.master[0]}")
            for tree in core.mastery.trees.values():
                for resource in tree.resources.values():
                    name = "/".join(part.decode() for part in resource.name if part)
                    valid = "" if resource.lvb_valid else " doubtful"
                    lvb = "" if resource.lvb is None else f" lvb={resource.lvb.decode()}{valid}"
                    self._say(f"n{node} masters {name}{lvb}")
        for label, (node, lock) in self.locks.items():
            if node in self.cores and lock.id in self.cores[node].ownership.locks:
                wanted = "" if lock.requested is None else f", wants {lock.requested.name}"
                held = "nothing" if lock.mode is None else lock.mode.name
                self._say(f"{label} holds {held}{wanted}")

    def _act(self, node: int, event: Event) -> None:
        try:
            effects = self.cores[node].handle(event, self._now_s)
        except LockError as error:
            self._say(f"refused: {type(error).__name__}")
            return
        for effect in effects:
            self._carry_out(node, effect)

    def _carry_out(self, node: int, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.links.setdefault((node, effect.node), deque()).append(effect.message)
            return
        if isinstance(effect, Answered | Heard):
            return  # no script asks for a range
        lock = effect.lock
        if isinstance(effect, Complete):
            lvb = "" if lock.lvb is None else f" lvb={lock.lvb.decode()}"
            doubt = "" if lock.lvb_valid else " (LVB doubtful)"
            held = "nothing" if lock.mode is None else lock.mode.name
            self._say(f"{lock.context}: {effect.status.name}, holds {held}{lvb}{doubt}")
            if effect.status is Status.DEADLOCK:
                self._say(f"  {lock.deadlock}")
        else:
            self._say(f"{lock.context}: blocks {effect.mode.name}")

    def _describe(self, message: Message, source: int, target: int) -> str:
        """Return the message in a line, its lock by label instead of number."""
        words = [type(message).__name__]
        number = getattr(message, "lock", None)
        if number is not None:
            by_owner = isinstance(message, _FROM_OWNER)
            owner = getattr(message, "origin", source if by_owner else target)
            words.append(self._label(owner, number))
        if isinstance(message, Probe | Chase | Confirm):
            return _on_the_way(message)
        for field in message.__struct_fields__:
            value = getattr(message, field)
            if field not in _HIDDEN and value != _DULL.get(field) and value not in (None, (), b""):
                words.append(f"{field}={self._plain(value)}")
        return " ".join(words)

    def _label(self, owner: int, number: int) -> str:
        for label, (node, lock) in self.locks.items():
            if node == owner and lock.id == number:
                return label
        raise KeyError((owner, number))

    def _plain(self, value: object) -> str:
        if isinstance(value, enum.IntEnum):
            return value.name
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, tuple):
            return "[" + ", ".join(map(self._plain, value)) + "]"
        return _entry(value)

    def _say(self, text: str) -> None:
        self._output.append(text)


def _entry(value: object) -> str:
    """Return one entry of a page in a few words."""
    if isinstance(value, Seat):
        return f"{value.root.decode()} n{value.master}"
    if isinstance(value, Reign):
        return value.root.decode() if value.term else f"{value.root.decode()} nobody"
    if isinstance(value, Record):
        held = "nothing" if value.granted is None else value.granted.name
        wanted = "" if value.requested is None else f" wants {value.requested.name}"
        place = f" at {value.sequence}" if value.sequence else ""
        name = "/".join(part.decode() for part in (value.root, value.leaf) if part)
        return f"{name} {held}{wanted}{place}"
    return _of_a_handover(value)


def _of_a_handover(value: object) -> str:
    if isinstance(value, Carried):
        held = "nothing" if value.granted is None else value.granted.name
        wanted = "" if value.requested is None else f" wants {value.requested.name}"
        return f"n{value.node}:{value.leaf.decode() or '.'} {held}{wanted}"
    if isinstance(value, Worth):
        return value.leaf.decode() or "."
    if isinstance(value, Start):
        return f"n{value.node}"
    return repr(value)


def _on_the_way(message: Probe | Chase | Confirm) -> str:
    """Return a search's message in a line."""
    if isinstance(message, Confirm):
        hop, where = message.cycle[message.at], "home" if message.home else "queue"
        where = "way" if message.behind else where
        return f"Confirm in its {where}: {hop.who} wants {hop.wants}"
    path = " <- ".join(f"{hop.who} wants {hop.wants}" for hop in message.path)
    if isinstance(message, Probe):
        return f"Probe {path}"
    return f"Chase {path} <- lock {', '.join(str(b.number) for b in message.blockers)}"


def replay(lines: Iterable[str]) -> list[str]:
    """Return the transcript with its output lines as they are today."""
    script, transcript = Script(), []
    for line in lines:
        if line.startswith(INDENT):
            continue
        transcript.append(line)
        if line and not line.startswith("#"):
            transcript += [INDENT + said for said in script.run(line)]
    return transcript


def _options(words: list[str]) -> tuple[int, bytes | None]:
    """Return flags and LVB; an LVB implies VALBLK."""
    flags, lvb = 0, None
    for word in words:
        key, _, value = word.partition("=")
        if key == "lvb":
            flags, lvb = flags | Flags.VALBLK, value.encode()
        else:
            flags |= Flags[key]
    return int(flags), lvb


def main(paths: Iterable[str]) -> None:
    """Rewrite the transcripts in place."""
    for name in paths:
        path = Path(name)
        path.write_text("\n".join(replay(path.read_text().splitlines())) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
