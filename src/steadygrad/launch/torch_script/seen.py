"""What was seen of a PyTorch script so far, which the parts of its observer share."""

from __future__ import annotations

from dataclasses import dataclass

from steadygrad.launch.contracts import RunContext
from steadygrad.launch.torch_script.attachments import Attachments
from steadygrad.launch.torch_script.facts import facts
from steadygrad.launch.torch_script.loop_facts import LoopWatch
from steadygrad.launch.torch_script.script_clips import ScriptClips
from steadygrad.torch.record.losses import LossMeter


@dataclass
class SeenScript:
    """A script's training.

    Attributes:
        context: the run.
        attachments: its optimizers.
        losses: of the thread that asks.
        loop: how it clears and adds up gradients.
        clips: its own clip calls.
        steps: of its optimizers.
        steps_elsewhere: of optimizers that are none of torch's.
        amp: whether a loss was scaled.
    """

    context: RunContext
    attachments: Attachments
    losses: LossMeter
    loop: LoopWatch
    clips: ScriptClips
    steps: int = 0
    steps_elsewhere: int = 0
    amp: bool = False

    def write_facts(self) -> None:
        """Say in the run file what is known by now of the models and of the device."""
        writer = self.context.writer()
        if writer is not None:
            writer.update_info(**facts(self.attachments.census, self.amp))

    def write_loop(self) -> None:
        """Say there how the loop handles gradients, where that is news."""
        writer = self.context.writer() if self.loop.changed else None
        if writer is not None:
            writer.update_info(loop=self.loop.as_json())
