"""What the first steps of a loop show, on loops in order and out of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from steadygrad.launch import optimizers
from steadygrad.launch.torch_script import census
from steadygrad.launch.torch_script.census import Census
from steadygrad.launch.torch_script.graph import leaves_of
from steadygrad.launch.torch_script.loop_facts import LoopWatch
from steadygrad.torch.loop.broadcast import broadcast_of
from steadygrad.torch.loop.logits import logits_of
from steadygrad.torch.loop.reduction import summed_of
from steadygrad.torch.loop.sizes import sizes_of
from steadygrad.torch.loop.targets import targets_of

STEPS = 12


class Watched:
    """`LoopWatch`, called where the observer calls it."""

    def __init__(self) -> None:
        self.facts, self.census = LoopWatch(), Census()
        self.followed: list[torch.optim.Optimizer] = []

    def backward(self, loss: torch.Tensor) -> None:
        owned = self.census.owned()
        self.facts.saw_loose(leaf for leaf in leaves_of([loss]) if id(leaf) not in owned)
        self.facts.before_backward([loss], self.census)
        loss.backward()
        self.facts.after_backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if not any(optimizer is other for other in self.followed):
            self.census.refresh()
            held = [p for group in optimizer.param_groups for p in group["params"]]
            names = self.census.names(held, set())
            known = {key: info.name for key, info in names.items()}
            self.facts.follow(optimizer, len(self.followed), known)
            self.followed.append(optimizer)
        self.facts.before_step(optimizer, self.census)
        optimizer.step()

    @property
    def told(self) -> dict[str, Any]:
        return self.facts.as_json()

    def first(self) -> dict[str, Any]:
        found: dict[str, Any] = self.told["optimizers"][0]
        return found


@pytest.fixture
def parts() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], torch.Tensor]]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(torch.randn(6, 4)), torch.randint(0, 3, (6,)))

    return model, optimizer, loss


def clear_data(optimizer: torch.optim.Optimizer) -> None:
    """As old tutorials do; the version counter of `grad` does not see it."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.data.zero_()


CLEARING: dict[str, Callable[[torch.optim.Optimizer], None]] = {
    "to None": lambda optimizer: optimizer.zero_grad(),
    "to zero": lambda optimizer: optimizer.zero_grad(set_to_none=False),
    "data": clear_data,
}


@pytest.mark.parametrize("way", CLEARING)
def test_a_loop_in_order(parts: Any, way: str) -> None:
    _, optimizer, loss = parts
    watched = Watched()
    for _ in range(STEPS):
        CLEARING[way](optimizer)
        watched.backward(loss())
        watched.step(optimizer)
    assert watched.first() == {
        "index": 0, "judged": STEPS - 1, "held": 0, "emptied": 0, "passes": 1, "undivided": 0,
    }  # fmt: skip
    assert watched.told["logits"] is None
    assert watched.told["loose"] == watched.told["stale"] == []


def test_never_cleared(parts: Any) -> None:
    _, optimizer, loss = parts
    watched = Watched()
    for _ in range(STEPS):
        watched.backward(loss())
        watched.step(optimizer)
    assert watched.first()["held"] == STEPS - 1


@pytest.mark.parametrize("way", CLEARING)
def test_cleared_between_backward_and_step(parts: Any, way: str) -> None:
    _, optimizer, loss = parts
    watched = Watched()
    for _ in range(STEPS):
        watched.backward(loss())
        CLEARING[way](optimizer)
        watched.step(optimizer)
    assert watched.first()["emptied"] == STEPS - 1
    assert watched.first()["held"] == 0


@pytest.mark.parametrize("place", ["loss", "gradients", "nowhere"])
@pytest.mark.parametrize("by", [4, 1000])
def test_accumulation_is_counted_and_is_not_held(parts: Any, place: str, by: int) -> None:
    _, optimizer, loss = parts
    watched = Watched()
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(4):
            watched.backward(loss() / by if place == "loss" else loss())
        grads = [p.grad for p in optimizer.param_groups[0]["params"]]
        torch._foreach_div_(grads, by if place == "gradients" else 1)
        watched.step(optimizer)
    # that any number but that of the passes is the same one again is seen at the second step
    judged = {"loss": 0, "gradients": 0, "nowhere": STEPS - 1}[place]
    assert watched.first()["passes"] == 4
    assert watched.first()["undivided"] in (judged, judged + (by == 1000 and place == "gradients"))
    assert watched.first()["held"] == 0


@pytest.mark.parametrize("change", ["clip", "scale", "break"])
def test_what_is_no_division_of_gradients_is_none(parts: Any, change: str) -> None:
    model, optimizer, loss = parts
    watched = Watched()
    for step in range(STEPS):
        optimizer.zero_grad()
        for _ in range(4):
            watched.backward(loss())
        if change == "clip":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01 / (step + 1))
        elif change == "scale":
            torch._foreach_div_([p.grad for p in model.parameters()], 1024.0)
        elif step == STEPS - 1:
            torch._foreach_mul_([p.grad for p in model.parameters()], float("inf"))
        watched.step(optimizer)
    assert watched.first()["undivided"] == STEPS - 1


def test_a_gan_whose_generator_adds_to_the_critics_gradients() -> None:
    torch.manual_seed(1)
    made, critic = nn.Linear(2, 3), nn.Linear(3, 1)
    of_made, of_critic = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (made, critic))
    watched = Watched()
    for _ in range(STEPS):
        of_critic.zero_grad()
        watched.backward(critic(torch.randn(5, 3)).mean())
        watched.backward(-critic(made(torch.randn(5, 2)).detach()).mean())
        watched.step(of_critic)
        of_made.zero_grad()
        watched.backward(critic(made(torch.randn(5, 2))).mean())
        watched.step(of_made)
    both = watched.told["optimizers"]
    assert [(o["held"], o["emptied"]) for o in both] == [(0, 0), (0, 0)]
    assert watched.told["loose"] == []


class Listed(nn.Module):
    """Blocks in a Python list: the model does not know them."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.blocks: Any = [nn.Linear(4, 4) for _ in range(2)]
        if registered:
            self.blocks = nn.ModuleList(self.blocks)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


@pytest.mark.parametrize("registered", [True, False])
def test_layers_in_a_plain_list(registered: bool) -> None:
    torch.manual_seed(2)
    model, watched = Listed(registered), Watched()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = [b.weight.clone() for b in model.blocks]
    for _ in range(STEPS):
        model.zero_grad()
        watched.backward(model(torch.randn(6, 4)).square().mean())
        watched.step(optimizer)
    moved = [not torch.equal(b.weight, was) for b, was in zip(model.blocks, first, strict=True)]
    assert moved == [registered, registered]  # the fix that SG603 shows
    loose = watched.told["loose"]
    if registered:
        assert loose == []
    else:
        assert [(g["container"], g["count"]) for g in loose] == [("Listed.blocks", 4)]


@pytest.mark.parametrize("through_data", [True, False])
def test_weights_that_are_copied_from_master_weights_are_nobodys_oversight(
    parts: Any, through_data: bool
) -> None:
    model, _, loss = parts
    master = [p.detach().clone().requires_grad_() for p in model.parameters()]
    optimizer, watched = torch.optim.SGD(master, lr=0.1), Watched()
    for _ in range(STEPS):
        model.zero_grad()
        watched.backward(loss())
        for slow, p in zip(master, model.parameters(), strict=True):
            slow.grad = p.grad
        watched.step(optimizer)
        with torch.no_grad():
            for slow, p in zip(master, model.parameters(), strict=True):
                (p.data if through_data else p).copy_(slow)
    assert watched.told["loose"] == []


def test_a_backbone_that_is_left_out_is_of_the_model(parts: Any) -> None:
    model, _, loss = parts
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    watched = Watched()
    del parts
    for _ in range(STEPS):
        model.zero_grad()
        watched.backward(loss())
        watched.step(optimizer)
    assert watched.told["stale"] == []
    assert all(group["of_the_model"] for group in watched.told["loose"])


@pytest.mark.parametrize("kept", [True, False])
def test_a_layer_that_was_replaced(kept: bool) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    old = model[2] if kept else None
    model[2] = nn.Linear(8, 5)
    watched = Watched()
    for _ in range(STEPS):
        model.zero_grad()
        watched.backward(model(torch.randn(6, 4)).square().mean())
        watched.step(optimizer)
    assert [(g["index"], g["count"]) for g in watched.told["stale"]] == [(0, 2)]
    assert old is None or old.weight.grad is None


def test_an_optimizer_of_a_copy() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(average.parameters(), lr=0.1)
    watched = Watched()
    for _ in range(STEPS):
        model.zero_grad()
        watched.backward(model(torch.randn(6, 4)).square().mean())
        watched.step(optimizer)
    assert [g["count"] for g in watched.told["stale"]] == [4]


def test_a_part_that_is_cut_off_is_not_left_behind() -> None:
    torch.manual_seed(4)
    encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
    watched = Watched()
    for _ in range(STEPS):
        optimizer.zero_grad()
        watched.backward(decoder(encoder(torch.randn(6, 4)).detach()).square().mean())
        watched.step(optimizer)
    assert watched.told["stale"] == []


def test_looking_changes_nothing(parts: Any) -> None:
    model, optimizer, _ = parts
    twin = copy.deepcopy(model)
    plain = torch.optim.SGD(twin.parameters(), lr=0.05)
    watched = Watched()
    for step in range(20):
        x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
        for net, opt in ((model, optimizer), (twin, plain)):
            opt.zero_grad()
            value = nn.functional.cross_entropy(net(x), y)
            if net is model:
                watched.backward(value)
                watched.step(opt)
            else:
                value.backward()
                opt.step()
        pairs = zip(model.parameters(), twin.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), step


class Two(nn.Module):
    """An actor and a critic: side by side, or the heads of one trunk."""

    def __init__(self, trunk: bool) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4) if trunk else None
        self.actor = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        self.critic = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x if self.trunk is None else torch.tanh(self.trunk(x))
        return self.actor(h).square().mean() + self.critic(h).square().mean()


@pytest.mark.parametrize("trunk", [False, True])
def test_networks_side_by_side_are_chains_of_their_own(trunk: bool) -> None:
    model, watched = Two(trunk), Watched()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        watched.backward(model(torch.randn(5, 4)))
        watched.step(optimizer)
    chains = [set(chain) for chain in watched.told["chains"]]
    assert len(chains) == 2
    for chain, name in zip(sorted(chains, key=min), ("actor", "critic"), strict=True):
        assert {n.partition(".")[0] for n in chain} == ({name, "trunk"} if trunk else {name})


def test_a_stack_is_one_chain_which_needs_no_word(parts: Any) -> None:
    _, optimizer, loss = parts
    watched = Watched()
    for _ in range(4):
        optimizer.zero_grad()
        watched.backward(loss())
        watched.step(optimizer)
    assert watched.told["chains"] == []


BEFORE = {
    "softmax": lambda x: x.softmax(1),
    "a view": lambda x: x.softmax(1).reshape(2, 3, 3).permute(0, 2, 1).reshape(6, 3),
    "half": lambda x: x.softmax(1).half().float(),
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("before", BEFORE)
def test_probabilities_are_seen_through_shapes(before: str) -> None:
    x, y = torch.randn(6, 3, requires_grad=True), torch.randint(0, 3, (6,))
    found = logits_of([nn.functional.cross_entropy(BEFORE[before](x), y)])
    assert found is not None
    assert found["before"] == ("sigmoid" if before == "sigmoid" else "softmax")


def test_attention_and_plain_losses_are_no_double_softmax() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, requires_grad=True), torch.randint(0, 3, (6,))
    layer = nn.Linear(3, 3)
    assert logits_of([nn.functional.cross_entropy(layer(x.softmax(1)), y)]) is None
    assert logits_of([nn.functional.nll_loss(x.softmax(1).log(), y)]) is None
    assert logits_of([nn.functional.binary_cross_entropy(x.sigmoid(), (x > 0).float())]) is None
    with_logits = nn.functional.binary_cross_entropy_with_logits
    assert logits_of([with_logits(x, (x > 0).float())]) is None
    assert logits_of([with_logits(x.sigmoid(), (x > 0).float())]) == {
        "loss": "bce_with_logits", "before": "sigmoid",
    }  # fmt: skip


@pytest.mark.parametrize("before", ["softmax", "sigmoid", "logits"])
def test_what_is_no_logarithm_before_nll_loss(before: str) -> None:
    layer, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.tensor([0, 1, 2] * 2)
    values = {"softmax": layer(x).softmax(1), "sigmoid": layer(x).sigmoid(), "logits": layer(x)}
    loss = nn.functional.nll_loss(values[before], y)
    assert logits_of([loss]) == {"loss": "nll_loss", "before": before}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_loss_that_is_summed_up(reduction: str) -> None:
    x, y = torch.randn(16, 3, requires_grad=True), torch.rand(16, 3)
    for loss_of in (
        nn.functional.mse_loss,
        nn.functional.binary_cross_entropy_with_logits,
        lambda a, b, reduction: getattr((a - b).abs(), reduction)(),
    ):
        loss = loss_of(x, y, reduction=reduction)
        assert summed_of([loss]) == (48 if reduction == "sum" else 0)
        assert summed_of([loss + x.mean() ** 2]) == (48 if reduction == "sum" else 0)
        assert summed_of([loss / 16]) == 0
    assert summed_of([x[0].sum()]) == 0  # three terms are no batch


def test_a_generator_that_no_optimizer_holds_is_seen_between_the_critics_steps(
    observe: Callable[..., Any],
) -> None:
    """Both optimizers were given the critic: only every other backward reaches the generator."""
    seen = observe()
    generator, critic = nn.Linear(3, 2), nn.Linear(2, 1)
    optimizers = [torch.optim.SGD(critic.parameters(), lr=0.01) for _ in range(2)]
    for step in range(2 * STEPS):
        for module in (generator, critic):
            module.zero_grad()
        made = generator(torch.ones(4, 3))
        critic(made if step % 2 else made.detach()).mean().backward()
        optimizers[step % 2].step()
    (group,) = seen.run().info["loop"]["loose"]
    assert (group["count"], group["of_the_model"]) == (2, False)


def test_an_optimizer_a_task_is_not_looked_for_each_time(
    observe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As meta-learning makes them: each look asks the garbage collector for all that lives."""
    looks: list[int] = []
    original = census.alive

    def alive(*classes: type) -> list[Any]:
        looks.append(1)
        return original(*classes)

    monkeypatch.setattr(census, "alive", alive)
    monkeypatch.setattr(census, "FREE_LOOKS", 4)
    monkeypatch.setattr(census, "REST", 1e9)
    monkeypatch.setattr(optimizers, "ALL_BEFORE", 4)
    seen, tasks = observe(), 20
    for _ in range(tasks):
        net = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    run = seen.run()
    assert len(looks) == 4
    assert len(run) == 3 * tasks
    assert len(run.info["optimizers"]) == tasks
    assert run.info["loop"]["loose"] == run.info["loop"]["stale"] == []
    assert not seen.session.troubles


def test_shapes_that_broadcast_are_seen_in_losses_and_in_differences() -> None:
    outputs, y = nn.Linear(3, 1)(torch.randn(6, 3)), torch.randn(6)
    flat, F = outputs.squeeze(1), nn.functional
    losses: list[Callable[..., torch.Tensor]] = [
        F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss,
        lambda a, b: ((a - b) ** 2).mean(), lambda a, b: (b - a).abs().sum() / 6,
        lambda a, b: ((a - b).square() + 0.1).sqrt().mean() + a.mean(),
    ]  # fmt: skip
    for loss in losses:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own word of it, in three of these
            assert broadcast_of([loss(outputs, y)]) == [6, 1]
            assert broadcast_of([loss(flat, y[:, None])]) == [6]
        assert broadcast_of([loss(flat, y)]) == broadcast_of([loss(outputs, y[:, None])]) == []
    pairs = [flat[:, None] - y, outputs - outputs.T, outputs - torch.randn(4), flat - flat.mean()]
    assert [broadcast_of([(p**2).mean()]) for p in pairs] == [[]] * 4


def test_targets_are_read_and_hooks_of_the_script_are_not_called() -> None:
    x, called = torch.zeros(4, requires_grad=True), []
    loss = nn.functional.binary_cross_entropy_with_logits
    for target in (torch.ones(4), torch.full((4,), 1.0005), torch.tensor([0.0, 1, 0.3, 0])):
        assert targets_of([loss(x, target)]) is None
    signs = torch.tensor([-1.0, 1, 1, -1])
    told = {"loss": "bce_with_logits", "lowest": -1.0, "highest": 1.0}
    assert targets_of([2 * loss(x, signs) + x.sum()]) == told
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: called.append(t) or t):
        hidden = loss(x, torch.full((4,), 255.0))
    assert targets_of([hidden]) is None
    assert called == []


def test_a_regression_tells_how_large_its_targets_are() -> None:
    x, y = torch.full((4, 1), 0.5, requires_grad=True), torch.full((4, 1), 3e30)
    for name in ("mse_loss", "smooth_l1_loss", "huber_loss"):
        loss = getattr(nn.functional, name)
        told = {"loss": name, "targets": pytest.approx(3e30), "spread": 0.0, "outputs": 0.5}
        assert sizes_of([2 * loss(x, y) + x.sum()]) == told
    assert sizes_of([((x - y) ** 2).mean(), x.softmax(0).sum()]) is None
