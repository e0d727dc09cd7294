"""`steadygrad run --log` and `--alert`: loggers and alerts for a script that has none."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import steadygrad
from steadygrad.cli import group
from steadygrad.launch.loggers import add_loggers
from steadygrad.launch.plan import Plan
from steadygrad.runlog import RunWriter

BREAKS = """
import hashlib, io, os, sys, time
import torch

class Heard(io.StringIO):
    def write(self, text):
        sys.__stderr__.write(text)
        return super().write(text)

observed = len(sys.argv) > 1
if observed:
    sys.stderr = Heard()
os.mkdir("elsewhere")
os.chdir("elsewhere")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(40):
    x = torch.randn(16, 8)
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    if step == 35:
        weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        loss = loss * float("nan")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(hashlib.sha256(weights).hexdigest())
deadline = time.monotonic() + 60
while observed and "steadygrad alert" not in sys.stderr.getvalue():
    if time.monotonic() > deadline:
        sys.exit("the alert did not come while the script ran")
    time.sleep(0.02)
os.chdir("..")
os.rmdir("elsewhere")
"""


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A loopback address, and what was posted to it."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook", posted
    server.shutdown()
    server.server_close()
    thread.join()


def test_steps_go_to_loggers_and_a_nan_is_told_at_once(forked: Any, hook: Any) -> None:
    address, posted = hook
    forked.write("breaks.py", BREAKS)
    plain = forked.python("breaks.py")
    logs = ["--log", "csv:sub/steps.csv,tensors=1", "--log", "jsonl", "--log", "tensorboard:logs"]
    done = forked.steadygrad(
        "run", "-q", "--out", "run.db", *logs, "--alert", address, "breaks.py", "observed"
    )
    assert (done.returncode, done.stdout) == (0, plain.stdout), done.stderr

    run = steadygrad.open_run(forked.run_file())
    rows = list(csv.DictReader((forked.folder / "sub/steps.csv").read_text().splitlines()))
    assert [float(row["norm"]) for row in rows[:35]] == run.steps.norm[:35].tolist()
    assert len(rows) == 40
    assert "grad_norm/0.weight" in rows[0]
    assert len((forked.folder / "run.jsonl").read_text().splitlines()) == 40
    assert len(list((forked.folder / "logs").glob("events.out.tfevents.*"))) == 1

    assert done.stderr.count("steadygrad alert: SG101 at step 35") == 1
    assert "  fix:\n" in done.stderr
    told = [event for event in run.events if event.kind == "alert"]
    assert "SG101" in [event.data["id"] for event in told]
    assert [body["id"] for body in posted] == [event.data["id"] for event in told]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--log", "tensorbord:logs"], "no sink 'tensorbord': choose one of alerts, csv"),
        (["--log", "csv:a.csv,tensors=x"], "tensors= takes a number of steps"),
        (["--alert", "pager"], "--alert takes the word terminal, the http(s) address of a webhook"),
    ],
)
def test_a_mistake_is_told_before_the_script_starts(
    tmp_path: Path, options: list[str], message: str
) -> None:
    script = tmp_path / "never.py"
    script.write_text("raise SystemError")
    result = CliRunner().invoke(group, ["run", *options, str(script)])
    assert result.exit_code == 2
    assert message in result.output


def test_a_child_logs_beside_its_parent_and_only_rank_0_logs(tmp_path: Path) -> None:
    plan = Plan("train.py", logs=("csv:steps.csv", "jsonl"), folder=str(tmp_path / "logs"))
    child = replace(plan, process="SpawnProcess-1")
    for number, (asked, rank) in enumerate([(plan, None), (plan, 0), (child, None), (plan, 1)]):
        with RunWriter(tmp_path / f"run{number}.db") as writer:
            add_loggers(writer, asked, rank)
        found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*[vl]"))
        expected = {
            0: ["logs/steps.csv", "run0.jsonl"],
            1: ["logs/steps.csv", "run1.jsonl"],
            2: ["logs/steps-SpawnProcess-1.csv", "run2.jsonl"],
            3: [],
        }
        assert found == expected[number]
        for path in found:
            (tmp_path / path).unlink()
