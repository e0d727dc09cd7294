"""The same small training by several trainers; knows nothing of steadygrad.

Run with names of functions as arguments; prints a digest of each one's final weights.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator

import torch

CLIP, RATE = 8.0, 0.01
torch.manual_seed(0)
X = torch.randn(192, 8)
Y = X.sum(1, keepdim=True) * 5
mse = torch.nn.functional.mse_loss


def new_model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def digest(model: torch.nn.Module) -> str:
    parts = [p.detach().numpy().tobytes() for p in model.parameters()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(X.split(8), Y.split(8), strict=True)


def loop(*, clip_after_step: bool) -> torch.nn.Module:
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for x, y in batches():
        optimizer.zero_grad()
        mse(model(x), y).backward()
        if clip_after_step:
            optimizer.step()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
    return model


def plain() -> torch.nn.Module:
    return loop(clip_after_step=False)


def misplaced() -> torch.nn.Module:
    return loop(clip_after_step=True)


def huggingface() -> torch.nn.Module:
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = new_model()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": mse(self.net(x), labels)}

    model = Model()
    arguments = TrainingArguments(
        "out",
        max_steps=len(X) // 8,
        per_device_train_batch_size=8,
        learning_rate=RATE,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=CLIP,
        train_sampling_strategy="sequential",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    Trainer(model=model, args=arguments, train_dataset=data).train()
    return model.net


def lightning() -> torch.nn.Module:
    import lightning.pytorch as pl

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = new_model()

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return mse(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    model = Model()
    trainer = pl.Trainer(
        max_epochs=1,
        gradient_clip_val=CLIP,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 8))
    return model.net


def accelerate() -> torch.nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = new_model()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=RATE))
    for x, y in batches():
        for half_x, half_y in zip(x.split(4), y.split(4), strict=True):
            with accelerator.accumulate(model):
                accelerator.backward(mse(model(half_x), half_y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, digest(globals()[name]()))
