"""Optimizers of other packages, bit for bit: observed, clipped and skipped, by closure or not."""

from __future__ import annotations

import inspect
import math

import bitsandbytes
import lion_pytorch
import prodigyopt
import pytest
import pytorch_optimizer
import schedulefree
import torch

import steadygrad.torch as sg
from steadygrad.torch.step.snapshot import Snapshot, same_bits

LARGE = 1e9
SMALL = 0.05


def classes(module, package):
    every = vars(module).values()
    return {
        f"{package}.{cls.__name__}": cls
        for cls in every
        if inspect.isclass(cls)
        and issubclass(cls, torch.optim.Optimizer)
        and not cls.__module__.startswith("torch.")
    }


def from_parameters(cls, **options):
    return lambda model: cls(model.parameters(), **options)


def around(cls, inner=torch.optim.Adam):
    return lambda model: cls(inner(model.parameters(), lr=0.05))


# needs a graph, a process group, a model, named parameters or more arguments
LEFT_OUT = {
    *("AdaGO", "AdaHessian", "AdaLOMO", "AdaMuon", "AdamMini", "AliG", "BSAM", "DeMo"),
    *("DistributedMuon", "FriendlySAM", "GSAM", "LOMO", "LookSAM", "Lookahead", "Muon"),
    *("MuonClip", "NorMuon", "OrthoGrad", "PCGrad", "Ranger21", "SAM", "SafeFP16Optimizer"),
    *("ScheduleFreeWrapper", "SophiaH", "SpectralSphere", "TRAC", "WSAM"),
}
MAKERS = {
    name: from_parameters(cls)
    for name, cls in classes(pytorch_optimizer, "pytorch_optimizer").items()
    if cls.__name__ not in LEFT_OUT
}
MAKERS |= {
    f"pytorch_optimizer.{cls.__name__}": around(cls)
    for cls in (
        pytorch_optimizer.Lookahead,
        pytorch_optimizer.OrthoGrad,
        pytorch_optimizer.ScheduleFreeWrapper,
        pytorch_optimizer.TRAC,
    )
}
MAKERS |= {
    f"pytorch_optimizer.{cls.__name__}": from_parameters(
        cls, base_optimizer=torch.optim.SGD, lr=0.05
    )
    for cls in (pytorch_optimizer.SAM, pytorch_optimizer.LookSAM, pytorch_optimizer.FriendlySAM)
}
MAKERS["pytorch_optimizer.WSAM"] = lambda model: pytorch_optimizer.WSAM(
    model, model.parameters(), torch.optim.SGD, lr=0.05
)
MAKERS |= {
    name: from_parameters(cls)
    for name, cls in classes(schedulefree, "schedulefree").items()
    if "Wrapper" not in name
}
MAKERS |= {
    "lion_pytorch.Lion": from_parameters(lion_pytorch.Lion, lr=0.01),
    "prodigyopt.Prodigy": from_parameters(prodigyopt.Prodigy),
    "bitsandbytes.AdamW8bit": from_parameters(bitsandbytes.optim.AdamW8bit, lr=0.01),
    "bitsandbytes.Lion8bit": from_parameters(bitsandbytes.optim.Lion8bit, lr=0.01),
}


class Run:
    """A few steps; its result is the weights and what `step` returned."""

    def __init__(self, training, make, with_closure, factors=(1.0, 1.0, 1.0), by_hand=None, **how):
        torch.manual_seed(0)
        self.t = training(make)
        if hasattr(self.t.optimizer, "train"):
            self.t.optimizer.train()
        self.steady = sg.attach(self.t.optimizer, **how) if how else None
        self.max_norm = by_hand
        self.returned = [self.step(factor, with_closure) for factor in factors]

    def step(self, factor, with_closure):
        before = Snapshot(self.t.optimizer) if math.isnan(factor) else None
        if with_closure:
            self.t.backward(factor)  # some read the gradients that are there, unclipped
        else:
            self.evaluate(factor)
        value = self.t.optimizer.step(*[lambda: self.evaluate(factor)][: int(with_closure)])
        if before is not None:
            assert before.holds(), "weights or state are not as before the skipped step"
            assert self.steady.last.action == "skip"
        return value if value is None else float(value)

    def evaluate(self, factor):
        loss = self.t.backward(factor)
        if self.max_norm is not None:
            groups = self.t.optimizer.param_groups
            sg.clip_grad_norm_([p for g in groups for p in g["params"]], self.max_norm)
        return loss

    def ends_as(self, other):
        weights = [[p.detach() for p in run.t.model.parameters()] for run in (self, other)]
        return same_bits(*weights)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MAKERS)
def test_observed_clipped_and_skipped(training, name, capsys):
    make, ways = MAKERS[name], 0
    for with_closure in (False, True):
        try:
            plain = Run(training, make, with_closure)
        except Exception:  # it does not step with a closure, or not without
            continue
        ways += 1
        observed = Run(training, make, with_closure, clip="none")
        assert observed.ends_as(plain)
        assert same_bits(observed.returned, plain.returned)
        by_hand = Run(training, make, with_closure, by_hand=SMALL)
        assert Run(training, make, with_closure, clip=f"norm:{SMALL}").ends_as(by_hand)
        broken = (math.nan, 1.0, 1.0, math.nan, 1.0)
        assert Run(training, make, with_closure, broken, clip=f"norm:{LARGE}").ends_as(plain)
    assert ways
