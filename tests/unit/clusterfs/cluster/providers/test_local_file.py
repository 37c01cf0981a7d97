import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clusterfs.cluster import membership
from clusterfs.cluster.providers.local_file import LocalFile, report_caches_dropped
from clusterfs.cluster.views import Member, State, View
from clusterfs.errors import ProviderAway, SetupError


def member(node: int, incarnation: int) -> Member:
    return Member(node, incarnation, f"n{node}", "h:1", State.UP, f"s{node}")


@pytest.fixture
def file(tmp_path: Path) -> LocalFile:
    file = LocalFile(tmp_path / "cluster.db")
    file.create()
    return file


def first_view(file: LocalFile) -> View:
    view = membership.joined(membership.founded("c", 4, 3), member(1, 1))
    assert file.propose(view, {})
    return view


def test_the_identity_is_made_once_and_kept_private(file: LocalFile, tmp_path: Path) -> None:
    identity = file.identity(5.0)
    again = LocalFile(tmp_path / "cluster.db")
    again.create(found=False)
    assert again.identity(7.0) == identity
    assert len(identity.secret) == 32
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_names_keep_their_numbers_and_incarnations_never_repeat(file: LocalFile) -> None:
    starts = [file.register(name) for name in ("a", "b", "a", "b")]
    assert [start.node for start in starts] == [1, 2, 1, 2]
    assert [start.incarnation for start in starts] == [1, 2, 3, 4]


def test_there_are_62_names(file: LocalFile) -> None:
    for n in range(62):
        file.register(f"n{n}")
    with pytest.raises(SetupError, match="62"):
        file.register("one more")
    assert file.register("n61").node == 62


def test_a_view_is_replaced_only_from_the_epoch_before(file: LocalFile) -> None:
    assert file.read().view is None
    first = first_view(file)
    second = membership.joined(first, member(2, 2))
    assert file.propose(second, {})
    assert not file.propose(membership.joined(first, member(3, 3)), {})
    assert file.read().view == second
    assert file.register("n1").store_id == ""


def test_the_store_of_a_name_is_remembered_after_its_member_left(file: LocalFile) -> None:
    assert file.register("n1").node == 1
    view = first_view(file)
    gone = membership.removed(view, {1})
    assert gone is not None
    assert file.propose(gone, {})
    assert file.register("n1").store_id == "s1"
    assert file.names() == {1: "n1"}
    with pytest.raises(SetupError, match="name this node n1"):
        file.register("n2", "s1")
    assert file.names() == {1: "n1"}
    assert file.register("n2", "s2").node == 2
    assert file.register("n1", "s1").incarnation == 4


def test_only_the_incarnation_that_is_up_can_renew(file: LocalFile) -> None:
    view = first_view(file)
    assert file.renew(1, 1) == 1
    assert file.renew(1, 2) is None
    assert file.renew(2, 1) is None
    leaving = membership.leaving(view, {1})
    assert leaving is not None
    assert file.propose(leaving, {})
    assert file.renew(1, 1) is None
    assert file.read().beats == {1: 1}


def test_renewals_leave_the_file_alone_whose_log_somebody_else_moves_into_it(
    file: LocalFile, tmp_path: Path
) -> None:
    """SQLite syncs when it does that: on a slow disk it would cost the lease."""
    first_view(file)
    file.tidy()
    beats = LocalFile(tmp_path / "cluster.db", durable=False)
    before = (tmp_path / "cluster.db").stat().st_mtime_ns
    for _ in range(2500):
        assert beats.renew(1, 1) == 1
    assert (tmp_path / "cluster.db").stat().st_mtime_ns == before
    file.tidy()
    assert (tmp_path / "cluster.db").stat().st_mtime_ns > before
    log_bytes = (tmp_path / "cluster.db-wal").stat().st_size
    for _ in range(2500):
        assert beats.renew(1, 1) == 1
    assert (tmp_path / "cluster.db-wal").stat().st_size == log_bytes, "its room is used again"
    assert file.read().beats == {1: 5000}
    beats.close()
    file.close()


def test_a_removal_fails_when_the_heart_has_beaten_meanwhile(file: LocalFile) -> None:
    view = first_view(file)
    file.renew(1, 1)
    removed = membership.removed(view, {1})
    assert removed is not None
    assert not file.propose(removed, {1: 0})
    assert file.propose(removed, {1: 1})


def test_a_supervisors_report_is_seen_and_forgotten_with_its_member(
    file: LocalFile, tmp_path: Path
) -> None:
    view = first_view(file)
    report_caches_dropped(tmp_path / "cluster.db", 1, 1)
    report_caches_dropped(tmp_path / "cluster.db", 1, 1)
    assert file.read().caches_dropped == {1}
    removed = membership.removed(view, {1})
    assert removed is not None
    assert file.propose(removed, {})
    assert file.read().caches_dropped == frozenset()
    with pytest.raises(ProviderAway):
        report_caches_dropped(tmp_path / "none.db", 1, 1)


def test_the_supervisors_part_needs_no_trio() -> None:
    code = "import sys, clusterfs.cluster.providers.local_file; assert 'trio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_others_changes_are_noticed(file: LocalFile, tmp_path: Path) -> None:
    file.changed()
    assert not file.changed()
    LocalFile(tmp_path / "cluster.db").register("n1")
    assert file.changed()
    assert not file.changed()


def test_a_locked_file_is_an_absent_provider_and_comes_back(
    file: LocalFile, tmp_path: Path
) -> None:
    first_view(file)
    quick = LocalFile(tmp_path / "cluster.db", wait_s=0.01)
    blocker = sqlite3.connect(tmp_path / "cluster.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(ProviderAway, match="locked"):
        quick.renew(1, 1)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert quick.renew(1, 1) == 1


def test_nobody_renews_in_vain_while_a_proposal_is_synced(
    file: LocalFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may stall for longer than a lease."""
    view = first_view(file)
    beats = LocalFile(tmp_path / "cluster.db", durable=False, wait_s=0.01)
    renewed: list[int | None] = []

    def stall(log: int) -> None:
        assert Path(f"/proc/self/fd/{log}").readlink().name == "cluster.db-wal"
        renewed.append(beats.renew(1, 1))

    monkeypatch.setattr(os, "fdatasync", stall)
    assert file.propose(membership.joined(view, member(2, 2)), {})
    assert renewed == [2]
    assert not file.propose(membership.joined(view, member(3, 3)), {})
    assert renewed == [2], "nothing was written"


def test_a_view_that_others_wrote_is_on_disk_before_it_is_believed(
    file: LocalFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = first_view(file)
    other = LocalFile(tmp_path / "cluster.db")
    seen: list[View | None] = []
    syncs = 0

    def sync(_log: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == 1:  # of the proposal, which is not on disk yet
            seen.append(other.read().view)

    monkeypatch.setattr(os, "fdatasync", sync)
    second = membership.joined(view, member(2, 2))
    assert file.propose(second, {})
    assert (seen, syncs) == ([second], 2)
    assert other.read().view == file.read().view == second
    assert syncs == 2, "once is enough"
    monkeypatch.setattr(os, "fdatasync", lambda _log: (_ for _ in ()).throw(OSError(5, "no disk")))
    with pytest.raises(ProviderAway, match="no disk"):
        file.register("n1")


def test_a_replaced_file_is_not_taken_for_the_old_one(file: LocalFile, tmp_path: Path) -> None:
    first_view(file)
    (tmp_path / "cluster.db").rename(tmp_path / "old.db")
    with pytest.raises(ProviderAway, match="No such file"):
        file.renew(1, 1)
    LocalFile(tmp_path / "cluster.db").create()
    with pytest.raises(ProviderAway):
        file.renew(1, 1)
    assert LocalFile(tmp_path / "cluster.db").read().view is None


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"no database" * 500)
    path.chmod(0o600)
    with pytest.raises(SetupError, match="not a cluster file"):
        LocalFile(path).create()
    assert path.read_bytes() == b"no database" * 500
    path = tmp_path / "y.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    path.chmod(0o600)
    with pytest.raises(SetupError, match="not a cluster file"):
        LocalFile(path).create()


def test_a_readable_secret_a_missing_folder_and_a_missing_file_are_refused(
    file: LocalFile, tmp_path: Path
) -> None:
    (tmp_path / "cluster.db").chmod(0o640)
    with pytest.raises(SetupError, match="0640"):
        LocalFile(tmp_path / "cluster.db").create()
    with pytest.raises(SetupError, match="folder"):
        LocalFile(tmp_path / "none" / "cluster.db").create()
    with pytest.raises(SetupError, match="not there"):
        LocalFile(tmp_path / "typo.db").create(found=False)
    assert not (tmp_path / "typo.db").exists()
    (tmp_path / "empty.db").touch(0o600)
    with pytest.raises(SetupError, match="is empty"):
        LocalFile(tmp_path / "empty.db").create(found=False)
    assert not (tmp_path / "empty.db").stat().st_size
    file.close()


def test_a_damaged_view_is_not_used(file: LocalFile, tmp_path: Path) -> None:
    first_view(file)
    with sqlite3.connect(tmp_path / "cluster.db") as vandal:
        vandal.execute("UPDATE view SET epoch = 2, body = x'c1'")
    vandal.close()
    with pytest.raises(ProviderAway, match="not a sound view"):
        file.read()


def test_of_many_threads_one_wins_each_epoch(file: LocalFile, tmp_path: Path) -> None:
    first_view(file)
    wins: list[int] = []

    def compete(node: int) -> None:
        mine = LocalFile(tmp_path / "cluster.db", wait_s=600.0)
        for turn in range(10):
            view = mine.read().view
            assert view is not None
            successor = membership.joined(view, member(node, 100 * node + turn))
            if mine.propose(successor, {}):
                wins.append(successor.epoch)
        mine.close()

    threads = [threading.Thread(target=compete, args=(node,)) for node in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    final = file.read().view
    assert final is not None
    assert sorted(wins) == list(range(2, final.epoch + 1))
    assert len(wins) >= 10


def test_processes_that_start_at_once_found_one_cluster(tmp_path: Path) -> None:
    code = (
        "import sys; from clusterfs.cluster.providers.local_file import LocalFile\n"
        "f = LocalFile(sys.argv[1], wait_s=600.0); f.create()\n"
        "print(f.identity(5.0).cluster, *[f.register(sys.argv[2]).incarnation for _ in range(20)])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c.db")]
    processes = [
        subprocess.Popen([*command, f"n{n}"], stdout=subprocess.PIPE, text=True, env=os.environ)
        for n in range(3)
    ]
    lines = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({line[0] for line in lines}) == 1
    assert sorted(int(i) for line in lines for i in line[1:]) == list(range(1, 61))


def test_asking_twice_keeps_the_locks_that_keep_the_log(tmp_path: Path) -> None:
    """Whoever closes must see that others have the file open, or it deletes their log."""
    path = tmp_path / "cluster.db"
    here = LocalFile(path)
    here.create()
    here.identity(5.0)
    here.create()
    asking = (
        "import sys; from clusterfs.cluster.providers.local_file import LocalFile\n"
        "there = LocalFile(sys.argv[1]); there.register('other'); there.close()"
    )
    subprocess.run([sys.executable, "-c", asking, str(path)], check=True)
    here.register("here")
    fresh = LocalFile(path)
    assert {fresh.register("other").node, fresh.register("here").node} == {1, 2}
    assert fresh.register("here").incarnation == here.register("here").incarnation - 1
    fresh.close()
    here.close()
