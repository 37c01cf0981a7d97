"""What a member tells of its ranges when the members change, a slice at a time."""

from dlm.core.lockspace import LockspaceCore
from dlm.core.recovery import SLICE
from dlm.effects import Effect, Send
from dlm.events import AskRange, Enter, FreeRange, Name, Party, RangeRequest, Tick
from dlm.messages import encode
from dlm.modes import Mode
from dlm.range_messages import How, RangeTell, Verdict

COUNT = 3000


def told(effects: list[Effect]) -> list[RangeTell]:
    return [
        effect.message
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, RangeTell)
    ]


def test_very_many_names_are_told_in_slices_as_they_are_by_then() -> None:
    core = LockspaceCore(1, 1)
    core.handle(Enter(1, {1: 1}), 0.0)
    parties = [Party(Name(b"%d" % number, b"p")) for number in range(COUNT)]
    for party in parties:
        request = RangeRequest(party, 0, 9, Mode.EX, How.TRY)
        core.handle(AskRange(request), 0.0)
        assert request.verdict is Verdict.GRANTED
    now_s = 1.0
    first = told(core.handle(Enter(2, {1: 1, 2: 2}, {}, 1), now_s))
    core.handle(FreeRange(parties[-1], 0, 9), now_s)
    slices = [first]
    while not any(message.last for message in slices[-1]):
        now_s = max(now_s, core.deadline_s)
        slices.append(told(core.handle(Tick(), now_s)))
    names = [name.root for messages in slices for message in messages for name in message.borrowed]
    assert len(names) == len(set(names)) > COUNT / 4  # those that node 2 keeps
    assert b"%d" % (COUNT - 1) not in names or core.ranges.used[parties[-1].name].borrowed
    assert max(sum(len(m.borrowed) for m in messages) for messages in slices) <= SLICE + 200
    assert len(slices) > COUNT / SLICE / 2
    assert all(encode(message) for messages in slices for message in messages)
    core.validate()
