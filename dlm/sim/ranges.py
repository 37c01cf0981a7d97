"""Programs that lock ranges of a few files in any way, and what must always hold of all ranges.

A program has one party for each name. Most are careful: they hold nothing while they wait, so none
of them may ever be told of a deadlock. The others hold what they have and wait for more, and free
everything when they are told to give way; so whoever waits for ever is in a deadlock that nobody
found, or was forgotten.
"""

import random
import traceback
from typing import Final

import msgspec

from dlm.core.range_table import Span
from dlm.effects import Answered, Effect, Heard
from dlm.events import (
    AskRange,
    AskWitnesses,
    CancelRange,
    FreeRange,
    GiveBack,
    Hearing,
    Name,
    Owner,
    Party,
    RangeRequest,
)
from dlm.modes import Mode
from dlm.range_messages import How, Verdict
from dlm.sim.checkers import Violation
from dlm.sim.faults import Faults, some_faults
from dlm.sim.world import Machine, World

NAMES: Final = (Name(b"a", b"p"), Name(b"b", b"p"), Name(b"c", b"p"), Name(b"c", b"f"))
BYTES: Final = 16
_REST_S = 20.0


class RangeChecker:
    """Looks at all live nodes at once, as no node can."""

    def __init__(self, world: World) -> None:
        self.waits = world.checker.waits  # the world's start of a node names itself to it
        self.values = world.checker.values
        self.estates = world.checker.estates

    def after_event(self, machines: list[Machine], acted: Machine, _now_s: float) -> None:
        """Check that nobody has what another one has, as far as `acted` may have changed that."""
        for name, used in acted.core.ranges.used.items():
            for key, holder in used.table.holders.items():
                for segment in holder.segments:
                    for machine in machines:
                        other = machine.core.ranges.used.get(name)
                        for its, found in () if other is None else other.table.holders.items():
                            clash = found.conflict(*segment.span())
                            if clash is not None and (its, machine) != (key, acted):
                                raise Violation(("exclusion", name, key, segment, its, clash))

    def at_rest(self, machines: list[Machine]) -> None:
        """Check that nothing is left when everything was freed and every message has arrived."""
        for machine in machines:
            user, keeper = machine.core.ranges, machine.core.keeper
            left = [
                *user.requests.values(),
                *user.parties.values(),
                *user.unacknowledged.values(),
                *(used.name for used in user.used.values() if used.table or used.sent),
                *(k.name for k in keeper.tables.values() if k.table or k.pending),
            ]
            if left or keeper.missing:
                raise Violation(("left", machine.node, left, keeper.missing))
        lent = {n: k.borrower for m in machines for n, k in m.core.keeper.tables.items()}
        has = {n: m.node for m in machines for n in m.core.ranges.used}
        if lent != has:
            raise Violation(("keepers and borrowers disagree", lent, has))


class Program:
    """Somebody on one start of a node, again and again."""

    def __init__(self, load: "Programs", machine: Machine, label: str, *, careful: bool) -> None:
        self.load = load
        self.world = load.world
        self.machine = machine
        self.careful = careful
        owner = Owner(label)
        self.parties = [Party(name, label, len(label), owner) for name in NAMES]
        self.model: dict[tuple[Party, int], Mode] = {}
        self.since_s: dict[tuple[Party, int], float] = {}  # when each byte was granted
        self.waiting: RangeRequest | None = None

    def rest(self) -> None:
        """Do something later."""
        self.world.after(self.world.around(0.005), self._step)

    def _step(self) -> None:
        if not self.machine.alive or self.waiting is not None:
            return
        if self.load.closing:
            self._free_all()
            return
        dice = self.world.random
        if (self.careful and self.model) or self.world.likely(0.3):
            self._free_some()
            self.rest()
            return
        party = dice.choice(self.parties)
        ends = sorted((dice.randrange(BYTES), dice.randrange(BYTES)))
        how = dice.choice((How.WAIT, How.WAIT, How.WAIT, How.TRY, How.TEST))
        mode = dice.choice((Mode.EX, Mode.EX, Mode.PR))
        self.waiting = RangeRequest(party, ends[0], ends[1], mode, how, self)
        self.world.act(self.machine, AskRange(self.waiting))
        if self.waiting is not None and self.world.likely(0.15):
            self.world.after(self.world.around(0.02), self._lose_patience)

    def _lose_patience(self) -> None:
        if self.waiting is not None:
            self.world.act(self.machine, CancelRange(self.waiting))

    def answered(self, request: RangeRequest) -> None:
        """Go on after a request."""
        if request is not self.waiting:
            raise Violation(("answered twice, or never asked", request))
        self.waiting = None
        self.load.completed += 1
        verdict = request.verdict
        self.load.verdicts[verdict] = self.load.verdicts.get(verdict, 0) + 1
        if verdict is Verdict.GRANTED:
            for byte in range(request.start, request.last + 1):
                self.model[request.party, byte] = request.mode
                self.since_s[request.party, byte] = self.world.now_s
            self.load.note(self.machine, request)
        elif verdict is Verdict.DEADLOCK:
            if self.careful:
                raise Violation(("no deadlock", request, request.story))
            self.world.after(0.0, self._free_all)
        if verdict is not Verdict.LOST:
            self.rest()

    def _free_some(self) -> None:
        dice = self.world.random
        if self.careful:
            self._free_all()
            return
        party, start = dice.choice(self.parties), dice.randrange(BYTES)
        self._free(party, start, dice.randrange(start, BYTES))
        if self.world.likely(0.2):
            self._free_all()

    def _free_all(self) -> None:
        for party in self.parties:
            self._free(party, 0, 2**63 - 1)
        if self.world.likely(0.2):
            self.world.act(self.machine, GiveBack(self.world.random.choice(NAMES)))

    def _free(self, party: Party, start: int, last: int) -> None:
        if not self.machine.alive:
            return
        self.world.act(self.machine, FreeRange(party, start, last))
        for byte in range(start, min(last + 1, BYTES)):
            self.model.pop((party, byte), None)
        self.check()

    def check(self) -> None:
        """Compare what the core says that we hold with what we believe."""
        for party in self.parties:
            held = {
                (party, byte): mode
                for start, last, mode in self.machine.core.ranges.held(party)
                for byte in range(start, last + 1)
            }
            believed = {key: mode for key, mode in self.model.items() if key[0] is party}
            if held != believed:
                raise Violation(("not what it was granted", party, held, believed))


class Return:
    """A new start of a node takes again, byte by byte, what its last one held.

    What its core says about what others had meanwhile is compared with what they had.
    """

    def __init__(self, load: "Programs", former: list[Program], machine: Machine) -> None:
        self.load = load
        self.former = former
        self.machine = machine
        self.bytes: dict[Party, tuple[Party, int, Mode, float]] = {}
        for program in former:
            for (party, byte), mode in program.model.items():
                again = Party(party.name, "again")
                self.bytes[again] = party, byte, mode, program.since_s[party, byte]
        self.missing = len(self.bytes)
        self.granted: list[Party] = []

    def begin(self) -> None:
        """Ask for all of it."""
        for party, (_, byte, mode, _) in self.bytes.items():
            request = RangeRequest(party, byte, byte, mode, How.TRY, self)
            self.load.world.act(self.machine, AskRange(request))

    def answered(self, request: RangeRequest) -> None:
        """Hear whether it is free now."""
        self.missing -= 1
        if request.verdict is Verdict.GRANTED:
            self.granted.append(request.party)
        if not self.missing and request.verdict is not Verdict.LOST:
            since = self.former[0].machine.core.here.epoch
            hearing = Hearing(self.granted, since, self)
            self.load.world.after(0.0, lambda: self._ask(hearing))

    def _ask(self, hearing: Hearing) -> None:
        if self.machine.alive:
            self.load.world.act(self.machine, AskWitnesses(hearing))

    def heard(self, hearing: Hearing) -> None:
        """Compare."""
        if hearing.lost:
            return
        for party in hearing.parties:
            clash = self._clash(party)
            if hearing.stands(party) and clash is not None:
                raise Violation(("somebody had it", self.bytes[party], clash, hearing))
            verdict = "stands" if hearing.stands(party) else "clashed" if clash else "unsure"
            self.load.returns[verdict] = self.load.returns.get(verdict, 0) + 1
        self.load.world.after(0.0, self._end)

    def _clash(self, party: Party) -> object:
        """Return what another node was granted since this one had it."""
        _, byte, mode, since_s = self.bytes[party]
        own = self.former[0].machine, self.machine
        for at_s, machine, name, (start, last, other) in self.load.grants:
            meets = name == party.name and start <= byte <= last and not other.compatible(mode)
            if meets and at_s >= since_s and machine not in own:
                return at_s, machine.node, start, last, other
        return None

    def _end(self) -> None:
        for party in self.bytes:
            if self.machine.alive:
                self.load.world.act(self.machine, FreeRange(party, 0, 2**63 - 1))
        self.load.settle(self.machine)


class Programs:
    """All programs of a world."""

    def __init__(self, world: World, per_node: int) -> None:
        self.world = world
        self.closing = False
        self.completed = 0
        self.verdicts: dict[Verdict | None, int] = {}
        self.programs: list[Program] = []
        self.returns: dict[str, int] = {}
        self.grants: list[tuple[float, Machine, Name, Span]] = []
        self._latest: dict[int, list[Program]] = {}  # by node
        self._per_node = per_node
        world.listener = self._hear

    def populate(self, machine: Machine) -> None:
        """Let this start of a node have its programs."""
        machine.core.detector.on_close = machine.core.detector.on_victim = None
        former = self._latest.pop(machine.node, [])
        if any(program.model for program in former):
            back = Return(self, former, machine)
            self.world.after(0.0, back.begin)
        else:
            self.settle(machine)

    def settle(self, machine: Machine) -> None:
        """Let the programs of this start of a node begin."""
        self._latest[machine.node] = []
        for number in range(self._per_node):
            label = f"p{machine.incarnation}.{number}"
            program = Program(self, machine, label, careful=number % 3 != 0)
            self.programs.append(program)
            self._latest[machine.node].append(program)
            program.rest()

    def note(self, machine: Machine, request: RangeRequest) -> None:
        """Remember who was granted what, and when."""
        span = Span(request.start, request.last, request.mode)
        self.grants.append((self.world.now_s, machine, request.party.name, span))

    def close(self) -> None:
        """Let everybody free what it holds, then or when it has what it waits for."""
        self.closing = True
        for program in self.programs:
            program.rest()

    def _hear(self, _machine: Machine, effect: Effect) -> None:
        if isinstance(effect, Answered):
            program = effect.request.context
            assert isinstance(program, Program | Return)
            program.answered(effect.request)
        elif isinstance(effect, Heard):
            assert isinstance(effect.hearing.context, Return)
            effect.hearing.context.heard(effect.hearing)


class Outcome(msgspec.Struct, frozen=True):
    """What a run was, and what broke; the trace is empty unless something did."""

    nodes: int
    events: int
    verdicts: dict[str, int]
    views: int
    recalls: int
    returns: dict[str, int]
    violation: str | None
    trace: list[str]


def simulate_ranges(
    seed: int,
    nodes: int | None = None,
    until_s: float = 0.5,
    faults: Faults | None = None,
    *,
    tracing: bool = False,
) -> Outcome:
    """Run the seed; all that goes wrong is in the outcome, with all that led to it if `tracing`."""
    dice = random.Random(seed ^ 0xF11E)
    nodes = nodes or dice.randint(2, 6)
    world = World(seed, nodes, faults or some_faults(dice), tracing=tracing)
    world.checker = RangeChecker(world)  # type: ignore[assignment]
    load = Programs(world, per_node=dice.randint(1, 5))
    world.started = load.populate
    violation: str | None = None
    try:
        world.boot()
        world.run(until_s)
        world.quiet = True
        world.run(until_s + 0.1)
        load.close()
        world.run(until_s + _REST_S)
        load.close()  # those that waited meanwhile
        world.run(until_s + 2 * _REST_S)
        world.checker.at_rest(list(world.machines.values()))
    except (AssertionError, LookupError, ValueError, TypeError, AttributeError):
        violation = traceback.format_exc()
    return Outcome(
        nodes,
        world.events_run,
        {verdict.name: count for verdict, count in load.verdicts.items() if verdict is not None},
        world.epoch,
        sum(machine.core.keeper.recalls for machine in world.machines.values()),
        load.returns,
        violation,
        list(world.trace) if violation else [],
    )
