"""Layers over a table behave like one dict, whenever a checkpoint freezes, writes or thaws."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.layers import Family, Values

OWNERS = st.sampled_from([b"o1", b"o2"])
KEYS = st.sampled_from([bytes((n,)) * m for n in (1, 9, 255) for m in (1, 2)])
BYTE = st.integers(0, 255)
END = b"\xff" * 9


class Layers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = SimulatedDisk().open_table()
        self.family: Family[bytearray] = Family(
            Values(self.table), b"T", bytes, bytearray, bytearray
        )
        self.model: dict[tuple[bytes, bytes], bytes] = {}
        self.frozen: dict[tuple[bytes, bytes], bytes] | None = None
        self.written = False

    @rule(owner=OWNERS, key=KEYS, value=st.binary(max_size=4))
    def put(self, owner: bytes, key: bytes, value: bytes) -> None:
        self.family.put(owner, key, bytearray(value))
        self.model[owner, key] = value

    @rule(owner=OWNERS, key=KEYS)
    def remove(self, owner: bytes, key: bytes) -> None:
        self.family.put(owner, key, None)
        self.model.pop((owner, key), None)

    @rule(owner=OWNERS, key=KEYS, byte=BYTE)
    def change_in_place(self, owner: bytes, key: bytes, byte: int) -> None:
        value = self.family.own(owner, key)
        assert (value is None) == ((owner, key) not in self.model)
        if value is not None:
            value.append(byte)
            self.model[owner, key] += bytes((byte,))

    @precondition(lambda self: self.frozen is None)
    @rule()
    def freeze(self) -> None:
        self.family.freeze()
        self.frozen, self.written = dict(self.model), False

    @precondition(lambda self: self.frozen is not None and not self.written)
    @rule()
    def write(self) -> None:
        self.table.commit(list(self.family.frozen_changes()))
        self.written = True

    @precondition(lambda self: self.written and self.frozen is not None)
    @rule()
    def thaw(self) -> None:
        assert self.frozen is not None
        self.table.refresh()
        self.family.thaw()
        image: Family[bytearray] = Family(Values(self.table), b"T", bytes, bytearray, bytearray)
        assert everything(image) == self.frozen, "the table is the state when it was frozen"
        self.frozen, self.written = None, False

    @rule(owner=OWNERS, after=KEYS)
    def scan_on(self, owner: bytes, after: bytes) -> None:
        found = [(key, bytes(value)) for key, value in self.family.after(owner, after, END)]
        wanted = [(k, v) for (o, k), v in self.model.items() if o == owner and k > after]
        assert found == sorted(wanted)

    @invariant()
    def equals_the_model(self) -> None:
        assert everything(self.family) == self.model
        for owner in (b"o1", b"o2", b"o3"):
            for key in (b"\x01", b"\x09\x09", b"\xff"):
                value = self.family.get(owner, key)
                assert (None if value is None else bytes(value)) == self.model.get((owner, key))


def everything(family: Family[bytearray]) -> dict[tuple[bytes, bytes], bytes]:
    return {
        (owner, key): bytes(value)
        for owner in (b"o1", b"o2")
        for key, value in family.after(owner, b"", END)
    }


TestLayers = Layers.TestCase
TestLayers.settings = settings(max_examples=60, stateful_step_count=40)
