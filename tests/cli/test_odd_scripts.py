"""Scripts that do odd things: plain and under `steadygrad run`, they do the same.

Standard output, standard error (tracebacks that the script itself prints included) and the
exit code are compared. What cannot be mended is named in docs/run.md.
"""

from __future__ import annotations

import re

import pytest

from steadygrad.runlog import open_run

from ..workbench import Workbench

TRAINING = """import torch, traceback
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
opt = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.randn(16, 4)
def step():
    opt.zero_grad()
    loss = (model(x) ** 2).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    return loss.item()
step()
"""
CLIP = "nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)\n"
SCRIPTS = {
    "backward raises": "torch.ones(1).backward()",
    "backward raises and is caught": """
try:
    torch.ones(1).backward()
except RuntimeError:
    traceback.print_exc()
print(step())
""",
    "backward twice": "loss = model(x).sum()\nloss.backward()\nloss.backward()",
    "a hook raises": """
def hook(grad):
    raise RuntimeError("in hook")
model[0].weight.register_hook(hook)
step()
""",
    "a hook leaves": "model[0].weight.register_hook(lambda g: exit(3))\nstep()",
    "a custom backward raises": """
class F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
    @staticmethod
    def backward(ctx, grad): raise RuntimeError("in F")
F.apply(model(x)).sum().backward()
""",
    "a clip raises": "model(x * float('inf')).sum().backward()\n" + CLIP,
    "a clip raises and is caught": "model(x * float('inf')).sum().backward()\ntry:\n    "
    + CLIP
    + "except RuntimeError:\n    traceback.print_exc()\nprint(opt.param_groups[0]['lr'])",
    "a clip is misused": "nn.utils.clip_grad_norm_()",
    "a clip of a number": "nn.utils.clip_grad_norm_(5, 1.0)",
    "a clip by a word": "nn.utils.clip_grad_value_(model.parameters(), 'a')",
    "a clip of nothing": """
import warnings
warnings.simplefilter("always")
nn.utils.clip_grad_norm_((p for p in []), 1.0)
nn.utils.clip_grad_norm(model.parameters(), 1.0)
""",
    "a step raises": "opt.param_groups[0]['lr'] = 'a'\nstep()",
    "a closure raises and is caught": """
def closure():
    opt.zero_grad()
    raise RuntimeError("in closure")
try:
    opt.step(closure)
except RuntimeError:
    traceback.print_exc()
print(step())
""",
    "a scaler raises": "torch.amp.GradScaler('cpu').step(opt)",
    "a chain of exceptions": """
try:
    try:
        torch.ones(1).backward()
    except RuntimeError as error:
        raise ValueError("x") from error
except ValueError:
    raise KeyError("y")
""",
    "an excepthook of its own": """
import sys
sys.excepthook = lambda k, e, t: print([f.name for f in traceback.extract_tb(t)])
torch.ones(1).backward()
""",
    "a logger": """
import logging
try:
    torch.ones(1).backward()
except RuntimeError:
    logging.exception("oh")
""",
    "a thread fails": """
import threading
thread = threading.Thread(target=lambda: torch.ones(1).backward())
thread.start(); thread.join()
print(step(), threading.active_count(), threading.enumerate()[0].name)
""",
    "the functions of torch": """
import inspect, pickle
for f in (torch.autograd.backward, nn.utils.clip_grad_norm_, torch.amp.GradScaler.step):
    print(inspect.signature(f), f.__module__, inspect.getsourcefile(f), len(inspect.getsource(f)))
print(pickle.loads(pickle.dumps(nn.utils.clip_grad_norm_)) is nn.utils.clip_grad_norm_)
""",
    "pickles of model and optimizer": """
import copy, hashlib, pickle
import io
def saved(what):
    file = io.BytesIO()
    torch.save(what, file)
    return file.getvalue()
for number in range(12):
    step()
    again = pickle.loads(pickle.dumps((model, opt)))  # whose bytes hold addresses
    told = [*map(saved, again), saved(model), saved(opt), saved(opt.state_dict())]
    print([hashlib.sha256(data).hexdigest() for data in told])
    net, copied = copy.deepcopy((model, opt))
    print(len(copied._optimizer_step_pre_hooks), sorted(vars(copied)))
    hooks = [[k for k, v in vars(m).items() if "hook" in k and v] for m in net.modules()]
    print(hooks, [len(p._backward_hooks or ()) for p in net.parameters()])
print(torch.load(io.BytesIO(saved(model)), weights_only=False)(x).sum().item())
""",
    "steps at exit": """
import atexit
atexit.register(lambda: [print(step()) for _ in range(3)])
""",
    "a function over ours": """
original = torch.autograd.backward
def mine(*args, **kwargs):
    print("mine")
    return original(*args, **kwargs)
torch.autograd.backward = mine
print(step())
""",
    "a scripted module": """
model = torch.jit.script(model)
opt = torch.optim.Adam(model.parameters())
print([step() for _ in range(3)])
""",
    "optimizers inside backward": """
each = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
def hook(p):
    nn.utils.clip_grad_norm_([p], 0.1)
    each[p].step(); each[p].zero_grad()
for p in model.parameters():
    p.register_post_accumulate_grad_hook(hook)
for _ in range(5):
    (model(x) ** 2).mean().backward()
print(sum(p.double().sum().item() for p in model.parameters()))
""",
    "children of an executor": """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def work(count):
    return [step() for _ in range(count)]
with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
    print(list(pool.map(work, [2])))
print(step())
""",
    "generators of random numbers": "print([step() for _ in range(20)], torch.rand(3).tolist())",
}


CASES = {
    "backward of a vector": "model(x).backward()",
    "backward of no graph": "x.sum().backward()",
    "backward of a list": "torch.autograd.backward([model(x).sum(), 5])",
    "backward with a gradient of another shape": "model(x).backward(torch.ones(3))",
    "backward with inputs that are none": "model(x).sum().backward(inputs=[])",
    "backward with an argument that is not": "model(x).sum().backward(none=1)",
    "backward after a change in place": "y = model(x)\nz = (y * y).sum()\ny.data.zero_(); "
    "y += 1\nz.backward()",
    "grad of nothing": "torch.autograd.grad(model(x).sum(), torch.ones(2, requires_grad=True))",
    "grad twice": "y = model(x).sum()\nfor _ in range(2):\n    "
    "torch.autograd.grad(y, [*model.parameters()])",
    "a forward of the wrong shape": "model(torch.ones(3, 5))",
    "a forward hook that raises": "h = model.register_forward_hook(lambda *a: 1 / 0)\ntry:\n"
    "    step()\nfinally:\n    h.remove()",
    "a backward hook of a module that raises": "h = model[0].register_full_backward_hook("
    "lambda *a: 1 / 0)\ntry:\n    step()\nfinally:\n    h.remove()",
    "a hook of a tensor that gives a wrong shape": "y = model(x)\ny.register_hook(lambda g: "
    "torch.ones(3))\ny.sum().backward()",
    "a hook after a gradient that raises": "p = model[0].bias\nh = p."
    "register_post_accumulate_grad_hook(lambda p: 1 / 0)\ntry:\n    step()\nfinally:\n"
    "    h.remove()",
    "a pre-hook of a step that raises": "h = opt.register_step_pre_hook(lambda *a: 1 / 0)\ntry:\n"
    "    step()\nfinally:\n    h.remove()",
    "a post-hook of a step that raises": "h = opt.register_step_post_hook(lambda *a: 1 / 0)\ntry:"
    "\n    step()\nfinally:\n    h.remove()",
    "a step with a word": "opt.step('a')",
    "a step with an argument that is not": "opt.step(none=1)",
    "a closure of LBFGS": "o = torch.optim.LBFGS(model.parameters())\no.step()",
    "a closure of LBFGS that raises": "o = torch.optim.LBFGS(model.parameters())\n"
    "o.step(lambda: 1 / 0)",
    "a closure that gives nothing": "print(opt.step(lambda: None))",
    "an optimizer of nothing": "torch.optim.SGD([], lr=0.1)",
    "an optimizer of a number": "torch.optim.SGD([5], lr=0.1)",
    "a rate below 0": "torch.optim.Adam(model.parameters(), lr=-1)",
    "a parameter twice": "opt.add_param_group({'params': [model[0].weight]})",
    "a state of another optimizer": "opt.load_state_dict({'state': {}, 'param_groups': []})",
    "a state that is none": "opt.load_state_dict(5)",
    "a scheduler of none": "torch.optim.lr_scheduler.StepLR(5, 1)",
    "a schedule before the step": "o = torch.optim.SGD(model.parameters(), lr=0.1)\ns = torch."
    "optim.lr_scheduler.StepLR(o, 1)\nimport warnings\nwith warnings.catch_warnings(record=True) "
    "as w:\n    warnings.simplefilter('always')\n    s.step()\nprint([str(e.message)[:60] for e "
    "in w], [e.lineno for e in w])",
    "an optimizer without step": "class O(torch.optim.Optimizer): pass\n"
    "O(model.parameters(), {}).step()",
    "a subclass whose step raises": "class O(torch.optim.SGD):\n    def step(self, closure=None):"
    "\n        super().step(closure)\n        raise KeyError('mine')\nO(model.parameters()).step()",
    "a clip of gradients": "nn.utils.clip_grad_norm_([5], 1.0)",
    "a clip without a threshold": "nn.utils.clip_grad_norm_(model.parameters())",
    "a clip of a word": "nn.utils.clip_grad_norm_(model.parameters(), 'a')",
    "a clip by an odd norm": "step()\nnn.utils.clip_grad_norm_(model.parameters(), 1.0, 'a')",
    "a clip with too much": "nn.utils.clip_grad_norm_(model.parameters(), 1.0, 2.0, 1, 2, 3)",
    "a clip by value of nothing": "nn.utils.clip_grad_value_(None, 1.0)",
    "a clip of an iterator that raises": "nn.utils.clip_grad_norm_((1 / 0 for _ in 'a'), 1.0)",
    "a norm of nothing": "print(nn.utils.get_total_norm([]))",
    "a clip with a norm of none": "nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, None)",
    "a scaler that unscales twice": "s = torch.amp.GradScaler('cpu', init_scale=2.0)\n"
    "s.scale(model(x).sum()).backward()\ns.unscale_(opt)\ns.unscale_(opt)",
    "a scaler of an odd kind": "torch.amp.GradScaler('abc')",
    "a scaler given a word": "torch.amp.GradScaler('cpu').scale('a')",
    "anomaly mode": "import warnings\nwarnings.simplefilter('ignore')\n"
    "with torch.autograd.detect_anomaly():\n    "
    "(torch.sqrt(-model(x).abs() - 1)).sum().backward()",
    "a checkpoint that raises": "from torch.utils.checkpoint import checkpoint\n"
    "checkpoint(lambda v: 1 / 0, x, use_reentrant=False)",
    "a generator between": "def g():\n    yield step()\n    1 / 0\nprint(list(g()))",
    "a finally around": "try:\n    torch.ones(1).backward()\nfinally:\n    print('finally')",
    "an exception of its own from a loss": "class E(BaseException): pass\nclass F(torch.autograd."
    "Function):\n    @staticmethod\n    def forward(ctx, v): return v.clone()\n    @staticmethod"
    "\n    def backward(ctx, g): raise E('x')\nF.apply(model(x)).sum().backward()",
    "an attribute that is none": "opt.none",
    "a representation": "print(opt, model, sorted(k for k in opt.state_dict()))",
    "a signature": "import inspect\nprint(inspect.signature(opt.step), inspect.signature("
    "torch.Tensor.backward), opt.step.__qualname__, opt.zero_grad.__qualname__)",
    "names of functions": "print(torch.Tensor.backward, nn.utils.clip_grad_norm_.__name__)",
    "garbage": "import gc, weakref\nm = nn.Linear(2, 1)\no = torch.optim.SGD(m.parameters(), 0.1)"
    "\nm(torch.ones(1, 2)).sum().backward()\no.step()\nr = weakref.ref(m), weakref.ref(o)\n"
    "del m, o\nprint([each() is None for each in r], len(gc.garbage))",
    "counts of threads": "import threading\nprint(threading.active_count(), "
    "[t.name for t in threading.enumerate()])",
    "signals": "import signal\nprint([signal.getsignal(s) for s in (2, 15, 10, 14)])",
    "the environment": "import os, sys\nprint(sorted(k for k in os.environ if 'STEADY' in k), "
    "sys.gettrace(), sys.getprofile(), sys.getrecursionlimit(), sys.getswitchinterval())",
    "a recursion without end": "def f(): f()\ntry:\n    f()\nexcept RecursionError as e:\n"
    "    print(e)",
    "a warning": "import warnings\nwith warnings.catch_warnings(record=True) as w:\n    "
    "warnings.simplefilter('always')\n    nn.utils.clip_grad_norm_([p for p in []], 1.0)\n    "
    "warnings.warn('mine')\nprint([(str(e.message)[:50], e.filename[-6:], e.lineno) for e in w])",
    "files that are open": "import os\nprint(len(os.listdir('.')) > 0, os.getcwd() == os.path."
    "abspath('.'))",
    "the state of random numbers": "import random, hashlib\nprint(random.random() >= 0, hashlib."
    "sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())",
    "vmap": "print(torch.func.vmap(lambda v: v * 2)(x).sum().item())\ntorch.func.vmap("
    "lambda v: v.item())(x)",
    "grad of torch.func": "print(torch.func.grad(lambda v: (v ** 2).sum())(x).sum().item())\n"
    "torch.func.grad(lambda v: v)(x)",
    "no_grad": "with torch.no_grad():\n    model(x).sum().backward()",
    "inference mode": "with torch.inference_mode():\n    y = model(x)\n(y * model[0].bias.sum())"
    ".sum().backward()",
    "a double backward": "g = torch.autograd.grad(model(x).sum(), [*model.parameters()], "
    "create_graph=True)\nsum((v ** 2).sum() for v in g).backward()\nprint(step())",
}
"""What an odd script may do between two steps; each is caught, and its traceback printed."""

MORE_FRAMES = ("a forward of the wrong shape", "a clip of an iterator that raises")
"""Of these the traceback has frames more, as docs/run.md says."""

BETWEEN = """
import sys
sys.stderr = sys.stdout
def tried(name, case):
    print("==", name)
    try:
        case()
    except BaseException:
        traceback.print_exc()
    opt.zero_grad()
"""


def both(bench: Workbench, code: str) -> tuple[list[str], list[str]]:
    """Exit code, standard output and error of the script, plain and observed."""
    bench.write("odd.py", code)
    plain, observed = (
        [str(done.returncode), *map(without_numbers, (done.stdout, done.stderr))]
        for done in bench.both("odd.py")
    )
    return plain, observed


def without_numbers(told: str) -> str:
    """What is told, without addresses and numbers of processes."""
    return re.sub(r"0x[0-9a-f]+|ForkProcess-\d+", "", told)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_odd_script_does_the_same(forked: Workbench, name: str) -> None:
    plain, observed = both(forked, TRAINING + SCRIPTS[name])
    assert observed == plain


NOTICING = """
import signal, warnings
children = []
signal.signal(signal.SIGCHLD, lambda *_: children.append(1))
for number in range(4):
    warnings.warn("due once")
    if number == 1:
        {attach}
    step()
print(len(children))
"""
ATTACH = "import steadygrad.torch as sg; sg.attach(opt, on_nonfinite='skip')"


@pytest.mark.parametrize("attach", ["pass", ATTACH], ids=["observed", "attached"])
def test_a_warning_comes_once_and_no_child_is_started(forked: Workbench, attach: str) -> None:
    """Not by the first step either, at which the run file begins."""
    code = TRAINING.removesuffix("step()\n") + NOTICING.format(attach=attach)
    plain, observed = both(forked, code)
    for code, printed, errors in (plain, observed):
        assert (code, printed) == ("0", "0\n"), errors
        assert errors.count("UserWarning: due once") == 1


def sections(told: str) -> dict[str, str]:
    return dict(part.split("\n", 1) for part in told.split("== ")[1:])


def test_what_is_done_between_two_steps_does_the_same(forked: Workbench) -> None:
    code = TRAINING + BETWEEN
    for number, (name, case) in enumerate(CASES.items()):
        body = case.replace("\n", "\n    ")
        code += f"def case{number}():\n    {body}\ntried({name!r}, case{number})\n"
    plain, observed = both(forked, code)
    assert plain[0] == observed[0] == "0", observed[2]
    assert list(sections(plain[1])) == list(CASES)
    told, expected = sections(observed[1]), sections(plain[1])
    for name in MORE_FRAMES:
        assert told.pop(name).splitlines()[-1] == expected.pop(name).splitlines()[-1]
    assert told == expected


def test_steps_at_exit_are_recorded(forked: Workbench) -> None:
    # the script's exit function is older than the first finalizer, as where torch comes after it
    first = "import atexit, weakref\nweakref.finalize._registered_with_atexit = False\n"
    both(forked, f"{first}atexit.register(lambda: [step(), step()])\n{TRAINING}")
    assert len(open_run(forked.run_file()).steps) == 3


def test_the_comparison_can_fail(forked: Workbench) -> None:
    code = "import sys\nprint([m for m in sys.modules if 'steadygrad.launch.s' in m])"
    plain, observed = both(forked, code)
    assert observed != plain
