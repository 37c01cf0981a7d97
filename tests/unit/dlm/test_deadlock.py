"""The search for deadlocks, message by message; the simulator checks it against the whole truth."""

import pytest

from dlm.core.waits import FIRST_SEARCH_S, SEARCH_EVERY_S
from dlm.events import Lock
from dlm.messages import Chase, Confirm, Probe
from dlm.modes import Mode
from dlm.sim.script import Script

SEARCHES = (Probe, Chase, Confirm)


class Play:
    """A script that answers questions."""

    def __init__(self, nodes: int = 3) -> None:
        self.script = Script()
        self.run(f"nodes {nodes}")

    def run(self, *lines: str) -> list[str]:
        return [said for line in lines for said in self.script.run(line)]

    def lock(self, label: str) -> Lock:
        return self.script.locks[label][1]

    def wait(self, seconds: float = 1.0) -> list[str]:
        """Let time pass in steps, and everything that is said meanwhile arrive."""
        said = []
        for _ in range(round(seconds / 0.05)):
            said += self.run("wait 0.05", "settle")
        return said

    def victims(self) -> list[str]:
        return [
            label
            for label, (node, lock) in self.script.locks.items()
            if lock.deadlock and lock.requested is None and node in self.script.cores
        ]

    def deliver_searches(self) -> int:
        """Let the messages of one step of the search arrive, and nothing else."""
        count = 0
        for (source, target), link in sorted(self.script.links.items()):
            while link and isinstance(link[0], SEARCHES):
                self.run(f"deliver n{source} n{target}")
                count += 1
                break
        return count


def ring(play: Play, size: int, nodes: int) -> None:
    """Owner k holds lock k and waits for lock k + 1."""
    for k in range(size):
        play.run(f"lock n{k % nodes + 1} r{k} EX as held{k} by T{k}", "settle")
    for k in range(size):
        play.run(f"lock n{k % nodes + 1} r{(k + 1) % size} PR as wanted{k} by T{k}", "settle")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("nodes", [1, 3])
def test_a_ring_has_one_victim_and_its_error_tells_the_ring(size: int, nodes: int) -> None:
    play = Play(nodes)
    ring(play, size, nodes)
    assert play.wait(FIRST_SEARCH_S / 2) == []
    play.wait()
    assert play.victims() == [f"wanted{size - 1}"]  # the youngest
    story = play.lock(f"wanted{size - 1}").deadlock
    for k in range(size):
        assert f"T{k} on node {k % nodes + 1}" in story
        assert f"EX on r{k}" in story
    play.run(f"unlock held{size - 1}", "settle")
    play.wait()
    assert len(play.victims()) == 1


def test_two_rings_through_one_owner_have_a_victim_each_or_a_common_one() -> None:
    play = Play(3)
    play.run("lock n1 a EX as a1 by A", "lock n2 b EX as b2 by B", "lock n3 c EX as c3 by C")
    play.run("settle", "lock n1 b EX as a-b by A", "lock n2 a EX as b-a by B", "settle")
    play.run("lock n1 c EX as a-c by A", "lock n3 a EX as c-a by C", "settle")
    play.wait()
    assert play.victims() == ["b-a", "c-a"]  # each the youngest of its ring


def test_a_reader_behind_a_waiting_writer_is_in_the_ring_by_its_place() -> None:
    play = Play(2)
    play.run("lock n1 a PR as r1 by R", "lock n2 b EX as w2 by S", "settle")
    play.run("lock n2 a EX as writer by W", "settle")  # waits for R alone
    play.run("lock n2 a PR as late by S", "settle")  # behind the writer, not against any holder
    play.run("lock n1 b EX as r-b by R", "settle")
    play.wait()
    assert len(play.victims()) == 1
    assert "waits for PR on a behind EX of W on node 2" in play.lock(play.victims()[0]).deadlock


def test_nobody_gives_way_because_of_one_that_goes_first_and_has_given_up() -> None:
    play = Play(3)
    play.run("lock n1 a PR as r1 by R", "lock n2 b EX as w2 by S", "settle")
    play.run("lock n3 a EX as writer by W", "settle", "lock n2 a PR as late by S", "settle")
    play.run("lock n1 b EX as r-b by R", "settle")
    play.run("cancel writer")  # the master does not hear of it yet
    play.run("wait 0.11")
    while play.deliver_searches():
        pass
    play.wait()
    assert play.victims() == []
    assert play.lock("late").mode is Mode.PR


def test_one_that_goes_first_is_not_followed_into_its_owners_other_waits() -> None:
    play = Play(2)
    play.run("lock n1 a PR as holder", "lock n2 b EX as b2 by S", "settle")
    play.run("lock n1 a EX as first by X", "settle")  # waits for a holder who is no owner
    play.run("lock n1 b EX as x-b by X", "settle")  # and at the same time for S
    play.run("lock n2 a PR as behind by S", "settle")
    play.wait()
    assert play.victims() == []  # `first` may be granted while x-b still waits
    play.run("unlock holder", "settle")
    play.wait()
    assert len(play.victims()) == 1  # now X holds a, and the ring is closed


def test_a_ring_may_lead_through_one_without_owner_that_goes_first() -> None:
    play = Play(2)
    play.run("lock n1 a PR as r1 by R", "lock n2 b EX as b2 by S", "settle")
    play.run("lock n1 a EX as nobodys", "settle")
    play.run("lock n2 a PR as late by S", "settle", "lock n1 b EX as r-b by R", "settle")
    play.wait()
    assert len(play.victims()) == 1


def test_locks_without_owner_take_no_part() -> None:
    play = Play(2)
    play.run("lock n1 a EX", "lock n2 b EX", "settle", "lock n1 b EX", "lock n2 a EX", "settle")
    assert play.wait() == []


@pytest.mark.parametrize("flag", ["NODLCKWT", "NODLCKBLK"])
def test_a_flag_takes_a_wait_or_a_holder_out_of_every_ring(flag: str) -> None:
    play = Play(2)
    held, wanted = ("", flag) if flag == "NODLCKWT" else (flag, "")
    play.run(f"lock n1 a EX {held} as a1 by A", "lock n2 b EX as b2 by B", "settle")
    play.run(f"lock n1 b EX {wanted} as a-b by A", "lock n2 a EX as b-a by B", "settle")
    play.wait()
    assert play.victims() == []


def test_a_kept_lock_is_in_the_way_only_while_somebody_uses_it() -> None:
    play = Play(2)
    play.run("lock n1 a EX as kept", "lock n2 b EX as b2 by B", "settle")
    play.run("lock n2 a EX as b-a by B", "lock n1 b EX as user-b by U", "settle")
    play.wait()
    assert play.victims() == []
    kept, user = play.lock("kept"), play.lock("user-b").transaction
    assert user is not None
    kept.users = {user: play.script.cores[1].here.waits.next_stamp()}
    play.wait()
    assert play.victims() == ["user-b"]


def test_a_ring_that_opens_during_the_confirming_round_has_no_victim() -> None:
    for steps in range(1, 20):
        play = Play(3)
        ring(play, 3, 3)
        play.run("wait 0.11")
        moves = sum(play.deliver_searches() for _ in range(steps))
        if any(lock.cancelling for _, lock in play.script.locks.values()):
            assert moves
            return
        play.run("cancel wanted1")  # not the one who would have to give way
        play.wait(SEARCH_EVERY_S * 3)
        assert play.victims() == [], steps
    raise AssertionError("the ring was never found")


def test_a_use_that_ended_but_is_still_known_to_the_master_closes_no_ring() -> None:
    play = Play(3)
    play.run("lock n3 a NL as a-master", "settle", "lock n2 b EX as b2 by B", "settle")
    play.run("lock n1 a EX as a1 by A", "settle")
    play.run("lock n1 b EX as a-b by A", "lock n2 a EX as b-a by B", "settle", "convert a1 NL")
    play.run("wait 0.2")
    while play.deliver_searches():
        pass
    assert play.script.links[1, 3], "n3 knows already"
    assert not any(lock.cancelling for _, lock in play.script.locks.values())


def test_a_release_that_waits_for_new_names_to_be_known_closes_no_ring() -> None:
    play = Play(3)
    play.run("lock n1 b EX as b1 by A", "lock n2 c EX as c2 by B", "settle")
    play.run("lock n2 b EX as b-b by B", "settle", "lock n1 e EX new", "unlock b1")
    assert play.lock("b1").parting is not None
    while play.script.links.get((1, 2)):
        play.run("deliver n1 n2")
    play.run("lock n1 c EX as a-c by A")
    for source, target in ((1, 2), (2, 1), (1, 2), (2, 1)):
        while play.script.links.get((source, target)):
            play.run(f"deliver n{source} n{target}")
    assert play.lock("a-c").sequence
    assert play.lock("b1").parting is not None
    play.run("wait 0.2")
    while play.deliver_searches():
        pass
    assert not any(lock.cancelling for _, lock in play.script.locks.values())


def test_what_the_owner_withdrew_itself_is_cancelled_not_deadlocked() -> None:
    play = Play(2)
    ring(play, 2, 2)
    play.run("cancel wanted1", "settle")
    play.wait()
    assert play.victims() == []


def test_a_ring_through_a_recovery_is_found_after_it() -> None:
    play = Play(3)
    ring(play, 2, 2)
    play.run("wait 0.11", "crash n3", "view", "settle")
    play.wait()
    assert play.victims() == ["wanted1"]


def test_conversions_and_requests_together_close_a_ring() -> None:
    play = Play(2)
    play.run("lock n1 a PR as a1 by A", "lock n2 a PR as a2 by B", "lock n2 b EX as b2 by B")
    play.run("settle", "convert a1 EX", "settle")
    play.wait()
    assert play.victims() == []
    play.run("convert b2 NL", "lock n1 b PR as a-b by A", "settle")
    play.wait()
    assert play.victims() == []  # A waits for B, who waits for nobody
    play.run("convert b2 PW", "settle")
    play.wait()
    assert play.victims() == ["b2"]
    assert (play.lock("b2").mode, play.lock("a2").mode) == (Mode.NL, Mode.PR)
