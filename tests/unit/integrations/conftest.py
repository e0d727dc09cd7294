"""A small character model, shared by the trainers' tests."""

from __future__ import annotations

import string

import pytest
import torch


class CharModel(torch.nn.Module):
    """Predicts the next character; takes and returns what a Hugging Face Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(128, 16)
        self.rnn = torch.nn.GRU(16, 32, batch_first=True)
        self.head = torch.nn.Linear(32, 128)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden, _ = self.rnn(self.embed(input_ids))
        logits = self.head(hidden)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return {"loss": loss, "logits": logits}


@pytest.fixture
def make_model():
    def make() -> CharModel:
        torch.manual_seed(0)
        return CharModel()

    return make


@pytest.fixture(scope="session")
def samples() -> list[dict[str, torch.Tensor]]:
    text = torch.tensor([ord(c) for c in string.__doc__ * 8 if ord(c) < 128])
    windows = [text[i * 17 : i * 17 + 17] for i in range(64)]
    return [{"input_ids": w[:-1], "labels": w[1:]} for w in windows]
