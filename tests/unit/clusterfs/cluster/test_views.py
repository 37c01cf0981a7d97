import msgpack
import msgspec
import pytest

from clusterfs.cluster.views import Member, State, View, decode_view, encode_view, nodes_of


def member(node: int, *, state: State = State.UP, store: bool = True) -> Member:
    return Member(node, 10 + node, f"n{node}", f"h:{node}", state, f"s{node}" if store else "")


SOUND = View(
    epoch=7,
    cluster="c",
    replicas=2,
    members=(member(1), member(2), member(3, state=State.LEAVING), member(4, store=False)),
    in_sync=(0b010, 0b110, 0b1000),
    syncing=(0b100, 0, 0),
    stopped=(False, False, True),
    generation=(7, 5, 1),
    lock_epoch=4,
)


def test_a_view_survives_its_encoding() -> None:
    assert decode_view(encode_view(SOUND)) == SOUND


def test_a_view_without_the_later_fields_is_read() -> None:
    fields = msgpack.unpackb(encode_view(SOUND))
    assert decode_view(msgpack.packb(fields[:9])) == SOUND


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x90", msgpack.packb([1, 2]), b"\x00" * 50])
def test_garbage_is_no_view(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="not a sound view"):
        decode_view(garbage)


@pytest.mark.parametrize(
    "broken",
    [
        {"members": (member(2), member(1))},
        {"members": (member(1), member(1))},
        {"in_sync": (0b110, 0b110, 0b1000)},  # in sync and syncing
        {"in_sync": (0b1000, 0b110, 0b1000)},  # in sync, but leaving, and not stopped
        {"in_sync": (0b010, 0b110, 0)},  # stopped without a copy
        {"syncing": (0b10000, 0, 0)},  # no store
        {"generation": (8, 5, 1)},
        {"generation": (7, 5)},
        {"lock_epoch": 8},
        {"dropped": 0b100},  # dropped and syncing
    ],
)
def test_validation_finds_each_broken_invariant(broken: dict[str, object]) -> None:
    SOUND.validate()
    with pytest.raises(AssertionError):
        msgspec.structs.replace(SOUND, **broken).validate()


def test_a_group_is_present_when_its_whole_last_set_is_up() -> None:
    assert not SOUND.present(2)
    back = msgspec.structs.replace(SOUND, members=(member(1), member(2), member(3)))
    assert back.present(2)


def test_masks_name_their_nodes() -> None:
    assert list(nodes_of(0b1001010)) == [1, 3, 6]
