"""Any interleaving of users, message deliveries, crashes and views, chosen by an adversary."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dlm.core.lockspace import LockspaceCore
from dlm.effects import Complete, Effect, Send
from dlm.events import Acquire, Change, Enter, Event, Lock, Name, Received, Release, Withdraw
from dlm.messages import Message
from dlm.modes import Flags, Mode, is_down

NODES = (1, 2, 3)
NAMES = (Name(b"a"), Name(b"b"), Name(b"b", b"x"))
MODES = st.sampled_from(Mode)
FLAGS = st.sampled_from((0, Flags.NOQUEUE, Flags.NOQUEUE | Flags.NOQUEUEBAST))


class LockCluster(RuleBasedStateMachine):
    """Whatever happens, nobody conflicts, and in the end everybody is answered once."""

    def __init__(self) -> None:
        super().__init__()
        self.cores: dict[int, LockspaceCore] = {}
        self.links: dict[tuple[int, int], list[Message]] = {}
        self.locks: list[tuple[int, LockspaceCore, Lock]] = []
        self.outstanding: set[int] = set()
        self.epoch = 0
        self.incarnation = 0
        for node in NODES:
            self.start(node)
        self.announce(NODES)

    # -- what may happen --------------------------------------------------------------------------

    @rule(node=st.sampled_from(NODES), name=st.sampled_from(NAMES), mode=MODES, flags=FLAGS)
    def ask(self, node: int, name: Name, mode: Mode, flags: int) -> None:
        if node in self.cores:
            lock = Lock(name)
            self.locks.append((node, self.cores[node], lock))
            self.outstanding.add(id(lock))
            self.act(node, Acquire(lock, mode, flags))

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), mode=MODES, flags=FLAGS)
    def convert(self, data: st.DataObject, mode: Mode, flags: int) -> None:
        node, _, lock = data.draw(st.sampled_from(self.idle()))
        assert lock.granted is not None
        self.outstanding.add(id(lock))
        self.act(node, Change(lock, mode, 0 if is_down(lock.granted, mode) else flags))

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        node, _, lock = data.draw(st.sampled_from(self.idle()))
        self.act(node, Release(lock))

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        node, _, lock = data.draw(st.sampled_from(self.waiting()))
        self.act(node, Withdraw(lock))

    @precondition(lambda self: any(self.links.values()))
    @rule(data=st.data(), count=st.integers(1, 8))
    def deliver(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            links = sorted(link for link, messages in self.links.items() if messages)
            if links:
                self.deliver_one(*data.draw(st.sampled_from(links)))

    @precondition(lambda self: len(self.cores) > 1)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(sorted(self.cores)))
        del self.cores[node]
        self.links = {link: said for link, said in self.links.items() if node not in link}
        self.locks = [entry for entry in self.locks if entry[0] != node]
        self.announce(NODES)

    @rule(node=st.sampled_from(NODES), deaf=st.sampled_from(NODES))
    def rejoin(self, node: int, deaf: int) -> None:
        """A node comes back; another one (or the same) misses this view."""
        if node not in self.cores:
            self.start(node)
            self.announce([other for other in NODES if other != deaf])

    # -- what must hold ---------------------------------------------------------------------------

    @invariant()
    def nobody_conflicts(self) -> None:
        held = [(lock.name, lock.mode) for _, _, lock in self.locks if lock.mode is not None]
        for index, (name, mode) in enumerate(held):
            for other_name, other in held[:index]:
                assert name != other_name or mode.compatible(other), held

    @invariant()
    def every_node_is_sound(self) -> None:
        for core in self.cores.values():
            core.validate()
            assert not core.here.misdirected

    def teardown(self) -> None:
        self.announce(NODES)
        self.settle()
        for _ in range(100):
            if not self.outstanding & {id(lock) for _, _, lock in self.locks}:
                break
            for node, _, lock in self.idle():
                self.act(node, Release(lock))
            self.settle()
        left = [lock for _, _, lock in self.locks if id(lock) in self.outstanding]
        assert not left, left
        assert all(not core.here.frozen for core in self.cores.values())

    # -- below ------------------------------------------------------------------------------------

    def idle(self) -> list[tuple[int, LockspaceCore, Lock]]:
        return [e for e in self.locks if e[2].granted is not None and e[2].requested is None]

    def waiting(self) -> list[tuple[int, LockspaceCore, Lock]]:
        return [entry for entry in self.locks if entry[2].requested is not None]

    def start(self, node: int) -> None:
        self.incarnation += 1
        self.cores[node] = LockspaceCore(node, self.incarnation)

    def announce(self, nodes: Any) -> None:
        self.epoch += 1
        members = {node: core.here.incarnation for node, core in sorted(self.cores.items())}
        for node in nodes:
            if node in self.cores:
                self.act(node, Enter(self.epoch, members, {}, self.epoch - 1))

    def settle(self) -> None:
        while any(self.links.values()):
            for link, messages in tuple(self.links.items()):
                if messages:
                    self.deliver_one(*link)

    def deliver_one(self, source: int, target: int) -> None:
        self.act(target, Received(source, self.links[source, target].pop(0)))

    def act(self, node: int, event: Event) -> None:
        effects: list[Effect] = self.cores[node].handle(event, 0.0)
        for effect in effects:
            if isinstance(effect, Send):
                if effect.node in self.cores:
                    self.links.setdefault((node, effect.node), []).append(effect.message)
            elif isinstance(effect, Complete):
                self.outstanding.remove(id(effect.lock))  # KeyError: answered twice


LockCluster.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestLockCluster = LockCluster.TestCase
