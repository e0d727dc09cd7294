"""TRL's SFTTrainer with the callback: a random model, a tokenizer of fifteen words, no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import steadygrad
from steadygrad.integrations.huggingface import SteadyGradCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated"),  # TRL's own use
]

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away"]
VOCABULARY = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def sft(folder: Path, callbacks: list[SteadyGradCallback], **options: object) -> SFTTrainer:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
    )
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "max_length": 16,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **options,
    }
    return SFTTrainer(
        model=GPT2LMHeadModel(config),
        args=SFTConfig(str(folder), **settings),
        train_dataset=Dataset.from_list([{"text": " ".join(WORDS[i % 5 :])} for i in range(32)]),
        processing_class=tokenizer(),
        callbacks=callbacks,
    )


def weights(trainer: SFTTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_sft_is_clipped_recorded_and_logged(tmp_path: Path) -> None:
    theirs = sft(tmp_path, [], max_grad_norm=0.05)
    theirs.train()
    callback = SteadyGradCallback(clip="norm:0.05", run=tmp_path / "run.db")
    ours = sft(tmp_path, [callback])  # its max_grad_norm stays 1.0
    ours.train()

    # they divide by norm + 1e-6: apart by 1e-6 / norm, times the few steps and Adam's slope
    assert torch.allclose(weights(theirs), weights(ours), rtol=0, atol=1e-4)
    run = steadygrad.open_run(tmp_path / "run.db")
    assert list(run.steps.action) == ["clip"] * 4
    assert np.allclose(run.steps.coef * run.steps.norm, 0.05, rtol=1e-12)
    assert np.isfinite(run.steps.loss).all()
    logged = [entry for entry in ours.state.log_history if "loss" in entry]
    assert [entry["grad_norm/total"] for entry in logged] == run.steps.norm.tolist()
    assert "grad_norm/transformer.wte.weight" in logged[0]
    assert "mean_token_accuracy" in logged[0]  # TRL's own figures are still there
