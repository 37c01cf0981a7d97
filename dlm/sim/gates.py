"""The gates of a simulated world: how a lost node's last work becomes known, group by group."""

from functools import partial
from typing import TYPE_CHECKING

from dlm.events import Opened
from dlm.fields import Epoch
from dlm.sim.estates import GROUPS, group_of

if TYPE_CHECKING:
    from dlm.sim.world import Machine, World


class Gates:
    """Opens each group in its own time, and each machine learns of it in its own time."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def roll_forward(self, epoch: Epoch) -> None:
        """Let each group get over the loss of who is left out in this epoch."""
        world = self._world
        for group in range(GROUPS):
            world.after(world.around(world.faults.gate_s), partial(self._open, group, epoch))

    def tell(self, machine: "Machine") -> None:
        """Let a machine know which gates are open."""
        machine.rolled = list(self._world.checker.estates.rolled)
        self._world.act(machine, Opened())

    def is_open(self, machine: "Machine", root: bytes, epoch: Epoch) -> bool:
        """Answer as the lock manager's gate does."""
        return machine.rolled[group_of(root)] >= self._world.checker.estates.last_loss(epoch)

    def _open(self, group: int, epoch: Epoch) -> None:
        world, rolled = self._world, self._world.checker.estates.rolled
        rolled[group] = max(rolled[group], epoch)
        for machine in tuple(world.machines.values()):
            world.after(world.around(world.faults.view_delay_s), partial(self.tell, machine))
