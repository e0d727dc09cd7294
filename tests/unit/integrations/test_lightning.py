"""The Lightning callback, with the real Trainer on a small model."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, TensorDataset

import steadygrad
from steadygrad.errors import UsageError
from steadygrad.integrations.lightning import SteadyGradCallback

pytestmark = [
    # Lightning's advice on data loaders and loggers, and its own use of retired torch calls
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 8, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True) * 20), batch_size=8)


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        )

    def training_step(self, batch, index):
        x, y = batch
        return torch.nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class TwoOptimizers(Regression):
    """Manual optimization: each half of the net has its own optimizer and loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            loss = super().training_step(batch, index)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[i].parameters(), lr=0.01) for i in (0, 2)]


def fit(folder: Path, model: pl.LightningModule, *callbacks: pl.Callback, resume=None, **options):
    settings = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        **options,
    }
    trainer = pl.Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(model, loader(), ckpt_path=resume)
    return trainer


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_clips_as_gradient_clip_val_does(tmp_path) -> None:
    theirs, ours = Regression(), Regression()
    fit(tmp_path, theirs, gradient_clip_val=0.5)
    trainer = fit(tmp_path, ours, SteadyGradCallback(clip="norm:0.5", run=tmp_path / "run.db"))
    # they divide by norm + 1e-6; gradients here are of norm 100
    assert torch.allclose(weights(theirs), weights(ours), rtol=0, atol=1e-6)
    run = steadygrad.open_run(tmp_path / "run.db")
    assert len(run.steps) == 6
    assert (run.steps.action == "clip").all()
    assert [t.name for t in run.tensors] == [n for n, _ in ours.named_parameters()]
    assert float(trainer.callback_metrics["grad_norm/total"]) == pytest.approx(run.steps.norm[-1])
    assert float(trainer.callback_metrics["clip/rate"]) == 1.0
    assert "grad_norm/net.0.weight" in trainer.callback_metrics

    watched = Regression()
    watching = SteadyGradCallback(clip="none", run=tmp_path / "none.db")
    fit(tmp_path, watched, watching, gradient_clip_val=0.5)
    assert torch.equal(weights(theirs), weights(watched))
    seen = steadygrad.open_run(tmp_path / "none.db").steps
    assert np.allclose(seen.norm, run.steps.norm, rtol=1e-4)
    assert set(seen.threshold) == {0.5}


def test_refuses_a_second_clip(tmp_path) -> None:
    with pytest.raises(
        UsageError, match=r"remove it, and type SteadyGradCallback\(clip='norm:0.5'\)"
    ):
        fit(tmp_path, Regression(), SteadyGradCallback(), gradient_clip_val=0.5)


def test_manual_optimization_with_two_optimizers(tmp_path) -> None:
    model = TwoOptimizers()
    trainer = fit(tmp_path, model, SteadyGradCallback(clip="norm:1.0", run=tmp_path / "run.db"))
    run = steadygrad.open_run(tmp_path / "run.db")
    for optimizer in (0, 1):
        steps = run.steps[run.steps.optimizer == optimizer]
        assert list(steps.step) == list(range(6))
        assert f"optimizer{optimizer}/grad_norm/total" in trainer.callback_metrics


def test_mixed_precision_measures_unscaled_gradients(tmp_path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    plain, mixed = tmp_path / "plain.db", tmp_path / "mixed.db"
    fit(tmp_path, Regression(), SteadyGradCallback(clip="norm:1.0", run=plain))
    fit(tmp_path, Regression(), SteadyGradCallback(clip="norm:1.0", run=mixed), plugins=[plugin])
    one, two = (steadygrad.open_run(path).steps for path in (plain, mixed))
    # the same training in float16: its norms are those of float32 to float16's rounding,
    # and a loss-scaled norm would be 64 times too large
    assert np.allclose(one.norm, two.norm, rtol=0.02)
    assert (two.loss_scale == 64.0).all()


def test_resumes_the_policy_with_the_checkpoint(tmp_path) -> None:
    def callback() -> SteadyGradCallback:
        return SteadyGradCallback(clip="zclip:warmup=2", run=tmp_path / "run.db")

    model = Regression()
    trainer = fit(tmp_path, model, callback(), max_epochs=2)
    whole = steadygrad.open_run(tmp_path / "run.db").steps
    (tmp_path / "run.db").rename(tmp_path / "whole.db")
    half = fit(tmp_path, Regression(), callback(), max_epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    fit(tmp_path, Regression(), callback(), max_epochs=2, resume=tmp_path / "half.ckpt")
    rest = steadygrad.open_run(tmp_path / "run-from6.db").steps
    assert trainer.global_step == 12
    assert np.array_equal(whole.norm[6:], rest.norm)
    assert np.array_equal(whole.threshold[6:], rest.threshold)


class Seen(pl.Callback):
    """Writes each rank's final weights and what its own handle says."""

    def __init__(self, folder: Path, watched: SteadyGradCallback) -> None:
        self.folder, self.watched, self.norms = folder, watched, []

    def on_train_batch_end(self, trainer, pl_module, *rest) -> None:
        self.norms += [steady.last.norm for steady in self.watched.steady]

    def on_train_end(self, trainer, pl_module) -> None:
        seen = {"weights": weights(pl_module), "norms": self.norms}
        torch.save(seen, self.folder / f"rank{trainer.global_rank}.pt")


def fit_on_two_ranks(folder: Path) -> None:
    ours = SteadyGradCallback(clip="norm:0.5", run=folder / "run.db")
    fit(folder, TwoOptimizers(), Seen(folder, ours), ours, devices=2, strategy="ddp_fork")


def test_two_ranks_take_one_decision_and_write_one_file(tmp_path, forked) -> None:
    # not forked from this process: it may hold JAX, which does not survive a fork
    done = forked.python(__file__, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt") for r in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    assert ranks[0]["norms"] == ranks[1]["norms"]
    run = steadygrad.open_run(tmp_path / "run.db")
    assert list(run.steps.norm) == ranks[0]["norms"]
    assert list(run.steps.optimizer) == [0, 1] * (len(run) // 2)


if __name__ == "__main__":
    fit_on_two_ranks(Path(sys.argv[1]))
