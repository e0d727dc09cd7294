"""The Trainer callback, with the real Trainer on a small model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

import steadygrad
import steadygrad.torch as sg
from steadygrad.errors import AttachError
from steadygrad.integrations.huggingface import SteadyGradCallback

# pin_memory and the like are the Trainer's own affair on a machine without a GPU
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data")


def trainer_of(folder: Path, model, samples, callbacks, **options) -> Trainer:
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        **options,
    }
    arguments = TrainingArguments(output_dir=str(folder), **settings)
    return Trainer(model=model, args=arguments, train_dataset=samples, callbacks=callbacks)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_clips_in_place_of_max_grad_norm(tmp_path, make_model, samples) -> None:
    theirs, ours = make_model(), make_model()
    trainer_of(tmp_path, theirs, samples, [], max_grad_norm=0.05).train()
    callback = SteadyGradCallback(clip="norm:0.05", run=tmp_path / "run.db")
    trainer = trainer_of(tmp_path, ours, samples, [callback])  # its max_grad_norm stays 1.0
    clip_before = torch.nn.utils.clip_grad_norm_
    trainer.train()

    # they divide by norm + 1e-6: apart by 1e-6 / norm, times the few steps and Adam's slope
    assert torch.allclose(weights(theirs), weights(ours), rtol=0, atol=1e-4)
    assert trainer.args.max_grad_norm == 1.0
    assert torch.nn.utils.clip_grad_norm_ is clip_before
    run = steadygrad.open_run(tmp_path / "run.db")
    assert len(run.steps) == 6
    assert (run.steps.action == "clip").all()
    assert np.allclose(run.steps.coef * run.steps.norm, 0.05, rtol=1e-12)
    assert np.isfinite(run.steps.loss).all()
    assert {t.name for t in run.tensors} == {n for n, _ in ours.named_parameters()}

    watched = make_model()  # "none" leaves the Trainer's own clip in force, and tells what it did
    callback = SteadyGradCallback(clip="none", run=tmp_path / "none.db")
    trainer = trainer_of(tmp_path, watched, samples, [callback], max_grad_norm=0.05)
    trainer.train()
    assert torch.equal(weights(theirs), weights(watched))
    seen = steadygrad.open_run(tmp_path / "none.db").steps
    assert np.allclose(seen.norm, run.steps.norm, rtol=1e-3)
    assert seen.norm[0] == trainer.state.log_history[0]["grad_norm/total"]
    # the same gradients by two ways: processors add up float64 in orders of their own
    assert seen.norm[0] == pytest.approx(run.steps.norm[0], rel=1e-14)
    assert np.allclose(seen.coef * seen.norm, 0.05, rtol=1e-4)


def test_a_layer_wise_optimizer_is_refused_and_nothing_is_taken_over(
    tmp_path, make_model, samples, caplog
) -> None:
    model = make_model()
    outer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    outer.optimizer_dict = {p: torch.optim.SGD([p], lr=0.01) for p in model.parameters()}
    callback = SteadyGradCallback(clip="norm:0.05", run=tmp_path / "run.db")
    trainer = trainer_of(tmp_path, model, samples, [callback], max_steps=1)
    trainer.optimizer = outer
    clip_before = torch.nn.utils.clip_grad_norm_
    with pytest.raises(AttachError, match=r"moves no weight itself.*galore_adamw"):
        trainer.train()
    assert trainer.args.max_grad_norm == 1.0
    assert torch.nn.utils.clip_grad_norm_ is clip_before
    assert "in force" not in caplog.text


def test_logs_norms_before_clipping_and_the_clip_rate(tmp_path, make_model, samples) -> None:
    trainer = trainer_of(tmp_path, make_model(), samples, [SteadyGradCallback(clip="norm:0.05")])
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 6
    for entry in logged:
        assert entry["grad_norm/total"] == pytest.approx(entry["grad_norm"], rel=1e-6)
        parts = [v for k, v in entry.items() if k.startswith("grad_norm/") and k[10:] != "total"]
        assert math.hypot(*parts) == pytest.approx(entry["grad_norm/total"], rel=1e-12)
        assert entry["clip/coef"] == pytest.approx(0.05 / entry["grad_norm/total"], rel=1e-12)
        assert entry["clip/rate"] == 1.0


def test_accumulation_in_bfloat16_is_one_step_a_window(tmp_path, make_model, samples) -> None:
    callback = SteadyGradCallback(clip="norm:0.05", run=tmp_path / "run.db")
    options = {"gradient_accumulation_steps": 2, "bf16": True, "max_steps": 3}
    trainer_of(tmp_path, make_model(), samples, [callback], **options).train()
    assert len(steadygrad.open_run(tmp_path / "run.db").steps) == 3


class Poisoned(torch.nn.Module):
    """The model, with one NaN batch: the third forward."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        out = self.inner(input_ids, labels)
        bad = torch.tensor(math.inf if self.calls == 3 else 1.0)
        # an inf for the head's bias alone: the other gradients stay finite
        out["loss"] = out["loss"] + (self.inner.head.bias[0] * 0.0 * 1.0).mul(bad)
        return out


def test_a_broken_step_is_skipped_and_the_tensor_is_named(tmp_path, make_model, samples) -> None:
    model = Poisoned(make_model())
    callback = SteadyGradCallback(clip="norm:1.0", run=tmp_path / "run.db")
    options = {"logging_nan_inf_filter": False}
    trainer_of(tmp_path, model, samples, [callback], **options).train()
    assert torch.isfinite(weights(model)).all()
    run = steadygrad.open_run(tmp_path / "run.db")
    assert list(run.steps.action).count("skip") == 1
    assert run.steps.action[2] == "skip"
    broken = [t.name for t, n in zip(run.tensors, run.tensor_nonfinite[2], strict=True) if n > 0]
    assert broken == ["inner.head.bias"]  # torch's log-only clip would have broken them all


def test_resumes_the_policy_with_the_checkpoint(tmp_path, make_model, samples) -> None:
    clip = "zclip:warmup=2"
    whole = SteadyGradCallback(clip=clip, run=tmp_path / "whole.db")
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer_of(tmp_path / "a", make_model(), samples, [whole], **saving).train()
    rest = SteadyGradCallback(clip=clip, run=tmp_path / "whole.db")
    trainer = trainer_of(tmp_path / "a", make_model(), samples, [rest], **saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    first = steadygrad.open_run(tmp_path / "whole.db").steps
    second = steadygrad.open_run(tmp_path / "whole-from3.db").steps
    assert np.array_equal(first.norm[3:], second.norm)
    assert np.array_equal(first.threshold[3:], second.threshold)


def test_gives_the_run_that_a_plain_loop_gives(tmp_path, make_model, samples) -> None:
    callback = SteadyGradCallback(clip="norm:0.5", run=tmp_path / "trainer.db")
    options = {
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
    }
    trainer_of(tmp_path, make_model(), samples, [callback], **options).train()

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sg.attach(optimizer, clip="norm:0.5", model=model, run=tmp_path / "plain.db") as steady:
        for step in range(6):
            batch = torch.utils.data.default_collate(samples[step * 8 : step * 8 + 8])
            loss = model(**batch)["loss"]
            steady.observe_loss(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    one, two = (steadygrad.open_run(tmp_path / f"{name}.db") for name in ("trainer", "plain"))
    for column in ("step", "threshold", "action", "lr"):
        assert np.array_equal(one.steps[column], two.steps[column]), column
    # the Trainer groups parameters by weight decay: another order, so another last bit
    assert np.allclose(one.steps.norm, two.steps.norm, rtol=1e-14)
    assert np.allclose(one.steps.loss, two.steps.loss, rtol=1e-6)
    names = [[t.name for t in run.tensors] for run in (one, two)]
    order = [names[0].index(name) for name in names[1]]
    assert np.array_equal(one.tensor_norms[:, order], two.tensor_norms)


def test_its_loss_scale_is_seen_through(tmp_path, make_model, samples) -> None:
    """On a CPU the Trainer computes fp16=True in float32 without a scaler: it is given torch's."""
    runs = {}
    for name, options in {"float32": {}, "scaled": {"fp16": True}}.items():
        callback = SteadyGradCallback(clip="norm:0.05", run=tmp_path / f"{name}.db")
        trainer = trainer_of(tmp_path, make_model(), samples, [callback], **options)
        if options:
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        trainer.train()
        runs[name] = steadygrad.open_run(tmp_path / f"{name}.db").steps
    one, two = runs["float32"], runs["scaled"]
    assert (two.loss_scale == 64.0).all()
    assert np.allclose(one.norm, two.norm, rtol=1e-5)  # a power of two changes no digit
    assert (two.action == "clip").all()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["grad_norm"] for entry in logged] == two.norm.tolist()
