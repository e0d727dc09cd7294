"""Fixes as code: in the words of the script's own library, with the imports that they need."""

from __future__ import annotations

from dataclasses import replace

import pytest

from steadygrad.rules.advice import code, jax_weights, keeping_weights, lower_lr
from steadygrad.rules.evidence.view import View


def view_of(m, framework="jax", names=()):
    m.info["framework"] = framework
    for place, name in enumerate(names):
        m.tensors[place] = replace(m.tensors[place], name=name)
    return View(m.run, 0)


@pytest.mark.parametrize("framework", ["torch", "keras", "tensorflow", "jax"])
def test_what_calls_sg_imports_it(make, framework):
    view = view_of(make(), framework)
    module = {"tensorflow": "keras"}.get(framework, framework)
    assert keeping_weights(view).startswith(f"import steadygrad.{module} as sg\n")
    calls = dict.fromkeys(("torch", "keras", "jax"), "sg.call()")
    assert code(view, **calls) == f"import steadygrad.{module} as sg\nsg.call()"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("params/Dense_0/kernel", "nn.Dense(n, kernel_init=init)"),
        ("layers/0/weight", "eqx.tree_at("),
        ("0/w", "w = init(key, (inputs, outputs))"),
    ],
)
def test_weights_are_drawn_in_the_words_of_the_library(make, name, words):
    assert words in jax_weights(view_of(make(), names=[name]), "he_normal")


@pytest.mark.parametrize(
    ("kind", "rate", "norm", "said"),
    [
        ("SGD", 20.0, 1.0, "learning_rate = 0.02  # was 20"),  # by the length of the gradient
        ("SGD", 0.01, 1.0, "learning_rate = 0.001  # was 0.01"),
        ("Adam", 0.3, 1e-6, "learning_rate = 0.0003  # was 0.3"),  # each element by the rate
    ],
)
def test_a_rate_is_divided_until_a_step_has_a_usual_length(make, kind, rate, norm, said):
    m = make()
    m.columns.update(lr=[rate] * m.steps, norm=[norm] * m.steps)
    m.info["optimizers"] = [{"index": 0, "class": kind, "framework": "jax"}]
    m.sample("weight_norm", {t.name: 3.0 for t in m.tensors})
    assert lower_lr(view_of(m)) == said


def test_fixes_of_a_loop_by_hand_make_an_optimizer_first(make):
    m = make()
    m.columns.update(lr=[float("nan")] * m.steps)
    m.info["optimizers"] = [{"index": 0, "class": "by hand", "framework": "torch"}]
    assert lower_lr(view_of(m)) == "lr = lr / 10"
    made, _, attach = keeping_weights(view_of(m)).partition("torch.optim.SGD(")
    assert made.endswith("as sg\noptimizer = ")
    assert "sg.attach(optimizer" in attach
    plain = code(view_of(m), torch="x = x / 2", keras="", jax="")
    assert plain == "x = x / 2"
