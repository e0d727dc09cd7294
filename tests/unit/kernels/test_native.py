"""What is particular to the C form: threads, instruction sets, layouts, storages that move."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from steadygrad import kernels
from steadygrad.errors import KernelError
from steadygrad.kernels import auto, native, reference

NARROW = (torch.float32, torch.float16, torch.bfloat16)


def columns(figures):
    return np.stack([np.asarray(c, np.float64) for c in auto.columns_of(figures)])


def read(tensors, p=2.0, **how):
    figures, refused = native.try_read(tensors, p, **how)
    assert refused == native.ALL_SERVED
    return columns(figures)


def normals(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_the_extension_was_built_and_auto_uses_it(monkeypatch):
    assert native.AVAILABLE
    monkeypatch.setattr(reference, "read", lambda *_: pytest.fail("the reference form ran"))
    assert kernels.read([torch.ones(4)]).norms.tolist() == [2.0]


@pytest.mark.parametrize("p", [2.0, 1.5, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_do_not_depend_on_the_number_of_threads(dtype, p):
    big = [normals(1_200_003, dtype=dtype), normals(7), normals(900_001, dtype=dtype)[::2]]
    assert sum(t.numel() * t.element_size() for t in big) > 4 << 20  # threads do start
    alone = read(big, p, threads=1)
    for threads in (2, 3, 7, 100):
        assert read(big, p, threads=threads).tobytes() == alone.tobytes()


def test_scaling_gives_the_same_bits_with_threads():
    grads, coefs = [normals(1_500_001), normals(3)], np.array([0.3, 1.0])
    alone, together = ([g.clone() for g in grads] for _ in range(2))
    native.try_scale(alone, coefs, threads=1)
    native.try_scale(together, coefs, threads=5)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(alone[0], grads[0])
    assert torch.equal(alone[1], grads[1])


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_every_instruction_set_gives_the_same_bits(dtype):
    grads = [normals(n, dtype=dtype, seed=n) for n in (1, 15, 16, 31, 33, 65_537)]
    first, *others = (read(grads, use=name) for name in native.instruction_sets())
    for other in others:
        assert other.tobytes() == first.tobytes()


@pytest.mark.parametrize("use", native.instruction_sets())
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_products_of_16_bits_are_rounded_once(dtype, use):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    grad = every.view(dtype) if dtype is not torch.float32 else every.float()
    for coef in (0.7310585786300049, 1 / 3, 0.99951171875, 2.0**-9):
        scaled = grad.clone()
        native.try_scale([scaled], np.array([coef]), use=use)
        once = grad.clone()
        reference.scale_([once], coef)
        assert torch.equal(torch.isnan(scaled), torch.isnan(grad))
        keep = ~torch.isnan(grad)
        width = torch.int32 if dtype is torch.float32 else torch.int16
        assert torch.equal(scaled[keep].view(width), once[keep].view(width))


def test_float16_products_agree_with_numpy():
    grad = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    grad = grad[torch.isfinite(grad)]
    expected = (grad.double().numpy() * 0.7310585786300049).astype(np.float16)
    native.try_scale([grad], np.array([0.7310585786300049]))
    assert np.array_equal(grad.numpy(), expected)


def test_a_norm_does_not_depend_on_the_partition():
    flat = normals(1 << 20, seed=3) * torch.logspace(-18, 18, 1 << 20)
    whole = read([flat])[0][0]
    for pieces in (2, 1000, 50_000):
        norms = read(list(torch.tensor_split(flat, pieces)))[0]
        assert math.hypot(*norms) == pytest.approx(whole, rel=1e-12)


def test_fifty_thousand_tensors_of_one_element():
    values = normals(50_000, seed=4)
    figures = read([value.reshape(1) for value in values])
    assert np.array_equal(figures[0], values.abs().double().numpy())
    assert np.array_equal(figures[1], figures[0])


def test_a_norm_over_38_million_elements():
    """The size at which a float32 sum is off by 0.27 %."""
    block = normals(1 << 20, seed=5)
    grad = block.repeat(37)
    exact = math.sqrt(37 * math.fsum((block.double() ** 2).tolist()))
    assert read([grad])[0][0] == pytest.approx(exact, rel=1e-13)


def test_figures_do_not_depend_on_flushed_subnormals():
    tiny = torch.full((100,), 1e-42)
    expected = read([tiny]).tobytes()
    if not torch.set_flush_denormal(True):
        pytest.fail("this processor cannot flush subnormals, and the test cannot fail")
    try:
        assert read([tiny]).tobytes() == expected
        assert (tiny * 1.0).max() == 0  # and the mode is back after the call
    finally:
        torch.set_flush_denormal(False)
    assert np.frombuffer(expected)[0] == pytest.approx(1e-41, rel=1e-3)


@pytest.mark.parametrize("value", [1e200, 1e-200, 1e-310, 1.5e300])
def test_float64_far_out_is_rescaled_chunk_by_chunk(value):
    ordinary = normals(50_000, dtype=torch.float64)
    grad = torch.cat([ordinary, torch.full((50_000,), value, dtype=torch.float64)])
    exact = np.sqrt(np.sum((grad.numpy().astype(np.longdouble)) ** 2))
    for use in native.instruction_sets():
        assert read([grad], use=use)[0][0] == pytest.approx(float(exact), rel=1e-12)


def test_chunks_at_the_border_of_two_scales_both_count():
    """The sums just within float64's range and just outside it have comparable weight."""
    below, above = 2.0**479.9, 2.0**480.1
    grad = torch.tensor([below] * 40_000 + [above] * 1_000, dtype=torch.float64)
    exact = math.sqrt(40_000 * (below / above) ** 2 + 1_000) * above
    assert read([grad])[0][0] == pytest.approx(exact, rel=1e-12)


def test_figures_follow_a_storage_that_moves():
    grad = torch.ones(1000)
    assert read([grad])[0][0] == pytest.approx(math.sqrt(1000))
    grad.data = torch.full((500,), 2.0)
    assert read([grad])[:, 0].tolist() == pytest.approx([2 * math.sqrt(500), 2, 0, 0])
    grad.resize_(4)
    assert read([grad])[0][0] == 4
    grad.set_(torch.zeros(3))
    assert read([grad])[:, 0].tolist() == [0, 0, 0, 3]


def test_gaps_and_orders_of_many_dimensions():
    base = normals(3, 4, 5, 6, 2)
    for view in (base[:, 1:3, ::2], base.permute(4, 0, 2, 1, 3)[..., 1:], base[1:, :, :, 2:5, 1]):
        assert not view.is_contiguous()
        assert np.array_equal(read([view])[1:], read([view.contiguous()])[1:])
        assert read([view])[0][0] == pytest.approx(read([view.contiguous()])[0][0], rel=1e-15)
        before, scaled = base.clone(), view * 0.5
        native.try_scale([view], np.array([0.5]))
        assert torch.equal(view, scaled)
        view.mul_(2)  # a power of two: what lies in the gaps must be as it was
        assert torch.equal(base, before)


def test_an_expanded_tensor_is_not_written_by_c_and_once_by_auto():
    wide = torch.tensor([[3.0], [4.0]]).expand(2, 8)
    assert read([wide])[0][0] == pytest.approx(math.sqrt(200))
    with pytest.raises(KernelError, match=r'Use form="auto"'):
        kernels.scale_([wide], 0.5, form="c")
    kernels.scale_([wide], 0.5)
    assert wide.tolist() == [[1.5] * 8, [2.0] * 8]


def test_a_write_is_known_to_autograd():
    grads = [torch.ones(3), torch.ones(3)]
    kernels.scale_(grads, np.array([0.5, 1.0]), form="c")
    assert [grad._version for grad in grads] == [1, 0]
    leaf = torch.ones(3, requires_grad=True)
    middle = leaf * 2
    product = (middle * middle).sum()
    kernels.scale_([middle.detach()], 0.5, form="c")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3).to_sparse(),
        torch.ones(3, dtype=torch.int64),
        torch.ones(3, device="meta"),
        type("Wrapper", (torch.Tensor,), {})([1.0]),
    ],
    ids=["sparse", "integer", "meta", "subclass"],
)
def test_what_c_cannot_serve_is_refused_by_index(tensor):
    good = torch.ones(2)
    assert native.try_read([good, tensor, good], 2.0)[1] == 1
    with pytest.raises(KernelError, match=r'got \w+ of dtype .*Use form="auto"'):
        kernels.read([good, tensor], form="c")


def test_auto_splits_a_mixed_list():
    sparse = torch.tensor([0.0, 3.0, 4.0]).to_sparse()
    figures = kernels.read([torch.ones(4), sparse, torch.full((9,), 2.0)])
    assert columns(figures).T.tolist() == [[2, 1, 0, 0], [5, 4, 0, 1], [6, 2, 0, 0]]
    grads = [torch.ones(2), sparse.clone(), torch.ones(2)]
    kernels.scale_(grads, np.array([0.5, 0.25, 1.0]))
    assert grads[0].tolist() == [0.5, 0.5]
    assert grads[1].to_dense().tolist() == [0.0, 0.75, 1.0]
    assert grads[2].tolist() == [1.0, 1.0]


def test_without_the_extension_auto_serves_and_c_says_what_to_type(monkeypatch):
    monkeypatch.setattr(native, "_read", None)
    monkeypatch.setattr(native, "AVAILABLE", False)
    monkeypatch.setattr(native, "_SETS", [])
    grad = torch.tensor([3.0, 4.0])
    assert kernels.read([grad]).norms.tolist() == [5.0]
    kernels.scale_([grad], 0.5)
    assert grad.tolist() == [1.5, 2.0]
    with pytest.raises(KernelError, match=r"pip install .* steadygrad"):
        kernels.read([grad], form="c")


@pytest.fixture
def no_exchange(monkeypatch):
    """A torch from before DLPack's exchange table."""
    monkeypatch.setattr(native, "_EXCHANGE", None)


@pytest.mark.usefixtures("no_exchange")
def test_an_older_torch_is_served_by_a_table():
    base = normals(6, 7, 8)
    grads = [base, base[::2, :, 1:5], base.permute(2, 0, 1), torch.tensor(2.0), torch.ones(0)]
    grads += [normals(40, dtype=torch.bfloat16), torch.ones(3, dtype=torch.complex64)]
    expected = columns(reference.read(grads, 2.0))
    np.testing.assert_allclose(read(grads), expected, rtol=1e-12)
    copies = [grad.clone() for grad in grads]
    assert native.try_scale(copies, np.full(len(grads), 0.5)) == native.ALL_SERVED
    for copy, grad in zip(copies, grads, strict=True):
        assert torch.equal(copy, grad * 0.5)


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("tensor", [torch.ones(3).to_sparse(), torch.ones(3, dtype=torch.int8)])
def test_an_older_torch_refuses_the_same_tensors(tensor):
    assert native.try_read([torch.ones(1), tensor], 2.0)[1] == 1


@pytest.mark.usefixtures("no_exchange")
def test_an_older_torch_does_not_write_overlapping_memory():
    assert native.try_scale([torch.ones(1).expand(4)], np.array([0.5])) == 0


def test_an_unknown_instruction_set_is_an_error():
    with pytest.raises(ValueError, match="no instruction set sse9"):
        native.try_read([torch.ones(1)], 2.0, use="sse9")


def test_the_gil_is_released():
    grad = torch.ones(1 << 24)
    ticks, running = [], threading.Event()

    def count():
        running.wait()
        while running.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-4)  # hands the GIL back

    counter = threading.Thread(target=count)
    counter.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # nobody gets the GIL by waiting for it
    try:
        running.set()
        start = time.perf_counter()
        for _ in range(20):
            read([grad], threads=1)
        end = time.perf_counter()
        running.clear()
    finally:
        sys.setswitchinterval(interval)
    counter.join()
    assert any(start < tick < end for tick in ticks)


def test_a_forked_child_measures_with_threads():
    code = """
import os, sys
import torch
from steadygrad.kernels import native
grad = torch.ones(1 << 22)
def norm():
    return native.try_read([grad], 2.0, threads=4)[0].norms[0]
assert norm() == 2048
child = os.fork()
if child == 0:
    os._exit(0 if norm() == 2048 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    assert done.returncode == 0


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("size", [1e-200, 1e-30, 1.0, 1e30, 1e200])
def test_the_total_is_the_norm_of_all_elements_taken_as_one_vector(p, size):
    generator = np.random.default_rng(5)
    values = [size * generator.standard_normal(n) for n in (1, 7, 0, 300, 5000)]
    total = kernels.read([torch.from_numpy(v) for v in values], p, form="c").total
    ratios = np.abs(np.concatenate(values)) / size
    oracle = ratios.max() if p == math.inf else math.fsum(ratios**p) ** (1 / p)
    assert math.isclose(total, oracle * size, rel_tol=1e-12)


def test_the_total_of_many_single_elements_keeps_its_digits():
    generator = np.random.default_rng(6)
    values = generator.standard_normal(50_000).astype(np.float32)
    total = kernels.read(list(torch.from_numpy(values).split(1)), form="c").total
    assert math.isclose(total, math.sqrt(math.fsum(values.astype(np.float64) ** 2)), rel_tol=1e-14)


def test_a_broken_tensor_breaks_the_total_and_nan_wins_over_inf():
    fine, over, broken = torch.ones(3), torch.tensor([math.inf]), torch.tensor([math.nan])
    assert kernels.read([fine, over], form="c").total == math.inf
    assert math.isnan(kernels.read([broken, over, fine], form="c").total)
    assert math.isnan(kernels.read([over, fine, broken], form="c").total)
    assert kernels.read([], form="c").total == 0.0
    assert kernels.read([torch.zeros(4)], form="c").total == 0.0
