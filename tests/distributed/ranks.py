"""What each of two ranks does; run as a script by the fixture `two_ranks`."""

from __future__ import annotations

import functools
import itertools
import json
import math
import pathlib
import sys
import time
import types
import warnings
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import steadygrad.torch as sg
from steadygrad import diagnose
from steadygrad.errors import ReplicasDifferWarning
from steadygrad.launch.job import ends_told, tell_end
from steadygrad.runlog import open_run
from steadygrad.torch.distributed import exchange

PAUSE = 0.02
CLIPS = {"ddp": ("norm:0.1",), "fsdp2": ("norm:0.1", "value:0.01", "agc:0.01")}
NORM_TYPES = (1.0, 2.0, 3.0, math.inf)


def gradients():
    """Whole gradients, the same everywhere."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for shape in ((7, 3), (5,), (1, 4))]


def whole_norms(_rank):
    """Norms of tensors that are split unevenly, kept whole, and split along the second axis."""
    mesh = init_device_mesh("cpu", (2,))
    placements = (Shard(0), Replicate(), Shard(1))
    grads = [distribute_tensor(g, mesh, [p]) for g, p in zip(gradients(), placements, strict=True)]
    return [
        [sg.get_total_norm(grads, p).item(), *sg.measure(grads, p).norms.tolist()]
        for p in NORM_TYPES
    ]


def of_many(function, rank):
    """The same as where the ranks are too many to gather from each."""
    with mock.patch.object(exchange, "MOST_GATHERED", 0):
        return function(rank)


def partial_sums(rank):
    """The norm of a gradient whose sum over the ranks is pending, and clipping it."""
    mesh = init_device_mesh("cpu", (2,))
    part = torch.tensor([3.0, -1.0]) if rank == 0 else torch.tensor([0.0, 5.0])
    grad = DTensor.from_local(part.clone(), mesh, [Partial()])
    norm = sg.get_total_norm([grad]).item()
    weight = torch.nn.Parameter(distribute_tensor(torch.zeros(2), mesh, [Replicate()]))
    weight.grad = grad
    sg.clip_grad_norm_([weight], 1.0)
    left = weight.grad.full_tensor().tolist()
    weight.grad = DTensor.from_local(part, mesh, [Partial()])
    sg.clip_grad_value_([weight], 3.5)
    return [norm, *left, *weight.grad.full_tensor().tolist()]


def broken_shards(_rank):
    """Figures of a tensor whose second half is not finite."""
    mesh = init_device_mesh("cpu", (2,))
    grad = torch.tensor([1.0, 0.0, math.nan, math.inf])
    stats = sg.measure([distribute_tensor(grad, mesh, [Shard(0)])])
    figures = (stats.norms, stats.max_abs, stats.nonfinite, stats.zeros)
    return [figure.item() for figure in figures]


def net():
    """A small seeded net."""
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))


def batch():
    """The data of all ranks."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)


def train(rank, wrap, clip):
    """Three steps, the second with NaN in rank 1's data alone."""
    model = wrap(net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    records = []
    gather = mock.patch.object(exchange, "_GATHER", side_effect=exchange._GATHER)
    with gather as collectives, sg.attach(optimizer, clip=clip) as steady:
        for step in range(3):
            x, y = (part[rank * 4 : rank * 4 + 4].clone() for part in batch())
            if step == 1 and rank == 1:
                x[0, 0] = math.nan
            optimizer.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            optimizer.step()
            last = steady.last
            records.append([last.norm, last.coef, last.action, last.cosine])
    return {
        "records": records,
        "weights": whole_weights(model),
        "collectives": collectives.call_count,
    }


def scaled(rank, wrap, count=2):
    """A GradScaler over two optimizers, of which one is unscaled beforehand; inf on one rank."""
    model = wrap(net())
    params = list(model.parameters())
    optimizers = [torch.optim.SGD(part, lr=0.1, momentum=0.9) for part in (params[:2], params[2:])]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    handles = [sg.attach(each, clip="norm:0.1", model=model) for each in optimizers]
    records = []
    for step in range(3):
        x, y = (part.chunk(count)[rank] for part in batch())
        for loss_part in (0.25, 0.75):  # two losses
            loss = ((model(x) - y) ** 2).mean() * loss_part
            scaler.scale(loss * (math.inf if step == 1 and rank == count - 1 else 1.0)).backward()
        scaler.unscale_(optimizers[0])
        for each in optimizers:
            scaler.step(each)
            each.zero_grad()
        scaler.update()
        last = [handle.last for handle in handles]
        facts = [*((r.action, r.loss_scale) for r in last), scaler.get_scale()]
        records.append([[r.norm for r in last], facts])
    for handle in handles:
        handle.detach()
    return {"records": records, "weights": whole_weights(model)}


def scaler_of_its_own(rank, shared):
    """A layer that each rank has alone, and a GradScaler on each; inf on rank 1 in one step."""
    torch.manual_seed(3 + rank)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = ShardedGradScaler if shared else torch.amp.GradScaler
    scaler = made("cpu", init_scale=1024.0, growth_interval=9)
    records = []
    groups = {"*": dist.group.WORLD}
    with sg.attach(optimizer, clip="norm:0.1", model=model, process_group=groups) as steady:
        for step in range(3):
            optimizer.zero_grad()
            loss = model(batch()[0]).square().mean()
            scaler.scale(loss * (math.inf if step == 1 and rank else 1.0)).backward()
            scale = scaler.get_scale()
            own = sum(float(p.grad.double().square().sum()) for p in model.parameters()) / scale**2
            before = model.weight.detach().clone()
            scaler.step(optimizer)
            scaler.update()
            still = torch.equal(before, model.weight)
            last = steady.last
            records.append([last.norm, own, last.action, still, scaler.get_scale()])
    return records


def in_backward(rank, wrap, count=2):
    """An optimizer a parameter that steps as soon as the gradient is there."""
    model = wrap(net())
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    handles = [sg.attach(each, clip="norm:0.1", model=model) for each in optimizers.values()]

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(step)
    records = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(3):
            x, y = (part.chunk(count)[rank] for part in batch())
            broken = math.nan if number == 1 and rank == count - 1 else 1.0
            (((model(x) - y) ** 2).mean() * broken).backward()
            last = [handle.last for handle in handles]
            records.append([[r.norm for r in last], [r.action for r in last]])
        for handle in handles:
            handle.detach()
    told = [str(w.message) for w in caught if issubclass(w.category, ReplicasDifferWarning)]
    return {"records": records, "weights": whole_weights(model), "told": told}


def compiled(rank, wrap, count=2):
    """Model, backward pass and optimizer's step in one compiled function."""
    model = wrap(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @functools.partial(torch.compile, backend="eager")
    def step(x, y):
        optimizer.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()

    records = []
    with sg.attach(optimizer, clip="norm:0.1", model=model) as steady, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of what it leaves uncompiled
        for _ in range(2):
            step(*(part.chunk(count)[rank] for part in batch()))
            records.append([[steady.last.norm], [steady.last.action]])
    return {"records": records, "weights": whole_weights(model)}


def whole_weights(model):
    """Gathered from the ranks."""
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [w.detach().flatten().tolist() for w in whole]


def fsdp2(model):
    """Shard every layer over the ranks."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def origin(rank, wrap, talks=False, run=None):
    """Where each rank finds the NaN that stands in rank 1's part of the batch."""
    model = wrap(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, _ = batch()
    inputs = inputs.clone()[rank * 4 : rank * 4 + 4]
    if rank == 1:
        inputs[2, 0] = math.nan
    seen = []
    if talks:
        (model.module if wrap is DistributedDataParallel else model).register_forward_hook(
            lambda *_: dist.all_reduce(torch.ones(1))
        )
    with warnings.catch_warnings(), sg.attach(optimizer, find_nan=True, run=run) as steady:
        warnings.simplefilter("ignore")
        model(inputs).square().mean().backward()
        optimizer.step()
        seen = [steady.origin.phase, list(steady.origin.rows), steady.origin.why_not]
    return seen


def recovery(rank, wrap):
    """A NaN in rank 1's data at step 5, and one in rank 1's weights at step 8."""
    model = wrap(net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    recover = "skip:2+rollback:2+snapshots:stride=2"
    with sg.attach(optimizer, clip="none", recover=recover) as steady:
        for step in range(12):
            x, y = (part[rank * 4 : rank * 4 + 4].clone() for part in batch())
            if rank == 1 and step == 5:
                x[0, 0] = math.nan
            if rank == 1 and step == 8:
                weight = next(model.parameters()).detach()
                local = weight.to_local() if isinstance(weight, DTensor) else weight
                local[0, 0] = math.nan
            optimizer.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            optimizer.step()
        acts = [str(act) for act in steady.recoveries]
    return {"acts": acts, "weights": whole_weights(model)}


def resumed(rank, wrap, folder):
    """A training that goes on from its files, of which rank 1's newest is broken."""

    def begun():
        model = wrap(net())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        spec = f"auto+snapshots:{folder},stride=4"
        return model, optimizer, sg.attach(optimizer, model=model, recover=spec)

    torch.manual_seed(rank)
    model, optimizer, steady = begun()
    own = pathlib.Path(folder, f"rank-{rank}")
    for step in range(14):
        step_of(rank, model, optimizer)
        due = own / f"step-{step - step % 4:09d}.snapshot"
        until = time.monotonic() + 2.0
        while not due.exists() and time.monotonic() < until:  # a thread writes it
            time.sleep(0.002)
    steady.detach()
    files = sorted(own.iterdir())
    if rank == 1:
        files[-1].write_bytes(files[-1].read_bytes()[:-1])
    dist.barrier()
    again, optimizer, steady = begun()
    first = steady.restore()
    for _ in range(first, 14):
        step_of(rank, again, optimizer)
    steady.detach()
    return {
        "first": first,
        "files": [file.name for file in files],
        "alike": whole_weights(model) == whole_weights(again),
    }


def step_of(rank, model, optimizer):
    """One step on a batch that the generator scales."""
    x, y = (part[rank * 4 : rank * 4 + 4] for part in batch())
    optimizer.zero_grad()
    ((model(x * torch.rand(1)) - y) ** 2).mean().backward()
    optimizer.step()


def fallen(rank, wrap):
    """A rate that becomes too hot for a loss that cannot spike."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
    model = wrap(torch.nn.Sequential(*layers, torch.nn.Tanh()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    draws = torch.Generator().manual_seed(rank)
    with sg.attach(optimizer, "norm:1.0", model, recover="auto+snapshots:stride=10") as steady:
        for step in range(112):
            x = torch.randn(8, 6, generator=draws)
            if step == 80:
                optimizer.param_groups[0]["lr"] = 20.0
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True).tanh()).square().mean().backward()
            optimizer.step()
        return [str(act) for act in steady.recoveries]


def unsaid_experts(rank, run):
    """Plain gradients that differ by rank, and nobody said that they may: what is warned of."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sg.attach(optimizer, run=run):
            for _ in range(3):
                optimizer.zero_grad()
                (model(torch.ones(2, 4)) * (rank + 1)).sum().backward()
                optimizer.step()
                dist.barrier()
    kinds = [w for w in caught if issubclass(w.category, ReplicasDifferWarning)]
    return [str(w.message) for w in kinds]


def events_of(rank, path, kind):
    """Of the run file that rank 0 wrote."""
    return [e.data for e in open_run(path).events if e.kind == kind] if rank == 0 else []


def observed(rank, run, faulty):
    """A training whose second rank is slow and has one NaN; what is said of ranks at the end."""
    model = DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sg.attach(optimizer, run=run, model=model) as steady:
        for step in range(6):
            optimizer.zero_grad()
            x, y = batch()
            if faulty and rank:
                time.sleep(PAUSE)
                x = x * (math.nan if step == 3 else 1.0)
            loss = ((model(x) - y) ** 2).mean()
            loss.backward()
            steady.observe_loss(loss)
            optimizer.step()
    if rank:
        return []
    rows = [e.data for e in open_run(run).events if e.kind == "ranks"]
    busy = [b for row in rows for b, r in zip(row["busy"], row["rank"], strict=True) if r]
    titles = [f.title for f in diagnose(open_run(run)) if f.id == "SG802"]
    return [titles, sorted(busy)]


def mended_nan(rank, path):
    """A rank that brings NaN, then the first fix of SG802: what is said, and are weights finite."""

    def trained(run, fix):
        torch.manual_seed(0)
        model = DistributedDataParallel(net())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scope = {"optimizer": optimizer, "model": model}
        scope["sg"] = types.SimpleNamespace(attach=functools.partial(sg.attach, run=run))
        call = fix.removeprefix("import steadygrad.torch as sg\n")  # here it is made with a file
        exec(f"steady = {call}", scope)
        with scope["steady"]:
            for step in range(6):
                optimizer.zero_grad()
                x, y = batch()
                x = x * (math.nan if rank and step == 3 else 1.0)
                ((model(x) - y) ** 2).mean().backward()
                optimizer.step()
        finite = all(bool(p.isfinite().all()) for p in model.parameters())
        found = diagnose(open_run(run)) if rank == 0 else []
        (fix,) = shared(rank, [f.fixes[0] for f in found if f.id == "SG802"])
        return [[f.id, f.severity] for f in found], finite, fix

    before = 'sg.attach(optimizer, model=model, on_nonfinite="propagate")'
    *broken, fix = trained(path.replace(".db", "-before.db"), before)
    *mended, _ = trained(path.replace(".db", "-after.db"), fix)
    return [broken, mended]


class Rows(torch.utils.data.Dataset):
    """Rows that take a while to read."""

    def __len__(self):
        return 400

    def __getitem__(self, index):
        time.sleep(PAUSE / 40)
        return torch.full((4,), float(index % 7))


def mended_straggler(rank, path):
    """A rank whose batches are larger, then the first fix that SG801 shows: who said what."""

    def trained(run, make):
        model = DistributedDataParallel(net())
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        scope = {"data": Rows(), "batch_size": 4, "DataLoader": torch.utils.data.DataLoader}
        scope["DistributedSampler"] = torch.utils.data.DistributedSampler
        exec(make, scope)
        with sg.attach(optimizer, run=run, model=model):
            for x in itertools.islice(scope["loader"], 28):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        dist.barrier()
        found = diagnose(open_run(run)) if rank == 0 else []
        said = [f for f in found if f.id == "SG801"]
        return [f.title for f in said], shared(rank, [f.fixes[0] for f in said])

    unequal = f"loader = DataLoader(data, {80 if rank else 4}, sampler=[*range(400)] * 6)"
    before, (fix,) = trained(path.replace(".db", "-before.db"), unequal)
    after, _ = trained(path.replace(".db", "-after.db"), fix)
    return [before, after]


def shared(rank, fixes):
    """What rank 0 was told, on both."""
    told = [fixes]
    dist.broadcast_object_list(told)
    return told[0] or [""]


def main(rank, path):
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results = {
        "whole_norms": whole_norms(rank),
        "partial_sums": partial_sums(rank),
        "broken_shards": broken_shards(rank),
        "whole_norms of many": of_many(whole_norms, rank),
        "partial_sums of many": of_many(partial_sums, rank),
        "broken_shards of many": of_many(broken_shards, rank),
    }
    for name, wrap in (("ddp", DistributedDataParallel), ("fsdp2", fsdp2)):
        for clip in CLIPS[name]:
            results[f"{name} {clip}"] = train(rank, wrap, clip)
        results[f"scaled {name}"] = scaled(rank, wrap)
        results[f"in_backward {name}"] = in_backward(rank, wrap)
    results["own scaler"] = scaler_of_its_own(rank, shared=False)
    results["shared scaler"] = scaler_of_its_own(rank, shared=True)
    results["compiled fsdp2"] = compiled(rank, fsdp2)
    results["experts"] = unsaid_experts(rank, path.replace(".json", ".db"))
    results["recovery ddp"] = recovery(rank, DistributedDataParallel)
    results["recovery fsdp2"] = recovery(rank, fsdp2)
    for name, wrap in (("ddp", DistributedDataParallel), ("fsdp2", fsdp2)):
        folder = pathlib.Path(path).parent / f"snapshots-{name}"
        results[f"resumed {name}"] = resumed(rank, wrap, folder)
    results["fallen"] = fallen(rank, DistributedDataParallel)
    results["rows"] = events_of(rank, path.replace(".json", ".db"), "ranks")
    found = path.replace(".json", "-nan.db")
    results["origin ddp"] = origin(rank, DistributedDataParallel, run=found)
    results["origins"] = events_of(rank, found, "nan_origin")
    for name in ("faulty", "sound"):
        results[name] = observed(rank, path.replace(".json", f"-{name}.db"), name == "faulty")
    results["mended nan"] = mended_nan(rank, path.replace(".json", "-nan.db"))
    results["mended straggler"] = mended_straggler(rank, path.replace(".json", "-slow.db"))
    if rank:
        tell_end("ValueError")
    dist.barrier()
    results["ends"] = ends_told()
    results["origin fsdp2"] = origin(rank, fsdp2)
    results["origin talks"] = origin(rank, DistributedDataParallel, talks=True)
    with open(path, "w") as file:
        json.dump(results, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).parents[1]))
    from forks import all_end

    all_end([functools.partial(main, rank, f"{sys.argv[1]}/{rank}.json") for rank in range(2)])
