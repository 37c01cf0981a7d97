import msgspec

from clusterfs.cluster import membership, report
from clusterfs.cluster.views import Member, State, View


def three() -> View:
    view = membership.founded("c", 8, 3)
    for node in (1, 2, 3):
        member = Member(node, node + 10, f"n{node}", f"127.0.0.1:{node}", State.UP, f"store{node}")
        view = membership.joined(view, member, set())
    return view


def test_a_newcomer_is_not_synced_until_it_reports() -> None:
    view = three()
    assert report.is_synced(view, 1)
    assert not report.is_synced(view, 2)
    reported = membership.in_sync(view, 2, 12, range(8))
    assert reported is not None
    assert report.is_synced(reported, 2)
    assert not report.is_synced(reported, 3)


def test_each_group_is_led_by_one_node_that_is_up() -> None:
    view = membership.in_sync(three(), 2, 12, range(8))
    assert view is not None
    assert report.led_groups(view, 1) == list(range(8))
    assert report.led_groups(view, 2) == []
    left = membership.leaving(view, {11})
    assert left is not None
    assert report.led_groups(left, 2) == list(range(8))


def test_a_view_is_described_member_by_member() -> None:
    described = report.describe(three())
    assert [m["name"] for m in described["members"]] == ["n1", "n2", "n3"]
    assert [m["in_sync"] for m in described["members"]] == [8, 0, 0]
    assert [m["syncing"] for m in described["members"]] == [0, 8, 8]
    assert all(m["wanted"] == 8 for m in described["members"])
    assert described["absent"] == []


def test_stopped_groups_wait_for_all_of_the_last_in_sync_set() -> None:
    view = membership.in_sync(three(), 2, 12, range(8))
    assert view is not None
    assert report.awaited(view) == []
    stopped = msgspec.structs.replace(view, stopped=(True,) * 8, members=view.members[2:])
    assert report.awaited(stopped) == [1, 2]
