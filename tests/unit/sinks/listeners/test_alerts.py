"""Alerts: told once, at once, everywhere asked for; whatever a webhook does, training goes on."""

from __future__ import annotations

import json
import logging
import math
import pickle
import resource
import socket
import threading
import time
import traceback
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apprise
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from apprise.decorators import notify
from click.testing import CliRunner

import steadygrad.jax as sj
from steadygrad.cli import group
from steadygrad.errors import RecordingWarning, UsageError
from steadygrad.launch.plan import Plan
from steadygrad.rules import Finding, diagnose
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, TrainingStopped, open_run
from steadygrad.runlog.items import Head, StepItem
from steadygrad.sinks import addresses, delivery, record
from steadygrad.sinks.addresses import apprise_of
from steadygrad.sinks.listeners import alerts
from steadygrad.sinks.listeners.alerts import Alerts
from steadygrad.sinks.loggers import trackio as trackio_sink
from steadygrad.sinks.loggers import wandb as wandb_sink
from steadygrad.sinks.replaying import replay
from steadygrad.torch import attach


def train(out: RunWriter, steps: int, broken_at: int | None) -> None:
    """A healthy training, until from one step on every gradient is NaN."""
    rng = np.random.default_rng(0)
    ids = out.add_tensors([TensorInfo("fc.weight", (100,), "float32", "Linear", 0)])
    for step in range(steps):
        broken = broken_at is not None and step >= broken_at
        norm = math.nan if broken else float(rng.lognormal(sigma=0.1))
        loss = math.nan if broken else 2.0 / (1 + step / 20)
        count = 100 if broken else 0
        out.write_step(
            StepRecord(step, loss=loss, norm=norm, lr=0.1, nonfinite=count),
            ids, [norm], [0.0 if broken else norm / 5], [count], [0],
        )  # fmt: skip


def test_a_broken_run_is_told_once_in_terminal_record_and_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Finding] = []
    told_once = threading.Event()

    def call(finding: Finding) -> None:
        seen.append(finding)
        told_once.set()

    with record(tmp_path / "run.db", Alerts(call=call, every=0.05)) as out:
        train(out, 40, broken_at=30)
        assert told_once.wait(30)
        train(out, 5, broken_at=0)  # looked at again at the end
    run = open_run(tmp_path / "run.db")
    assert seen
    assert {f.severity for f in seen} == {"error"}
    assert len({(f.id, f.optimizer) for f in seen}) == len(seen)
    assert any(f.id.startswith("SG1") and 30 in f.steps for f in seen)
    told = [event for event in run.events if event.kind == "alert"]
    assert [event.data["id"] for event in told] == [f.id for f in seen]
    err = capsys.readouterr().err
    for finding in seen:
        assert err.count(f"steadygrad alert: {finding.id}") == 1
        assert finding.title in err


def test_an_alert_comes_while_the_run_goes_on(tmp_path: Path) -> None:
    told = threading.Event()
    sink = Alerts(call=lambda finding: told.set(), every=3600.0, quiet=True)
    with record(tmp_path / "run.db", sink) as out:
        train(out, 40, broken_at=30)
        assert told.wait(20)  # long before the hour that the schedule would take


def test_a_healthy_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Finding] = []
    with record(tmp_path / "run.db", Alerts(call=seen.append, every=0.05)) as out:
        train(out, 100, broken_at=None)
    assert [f.id for f in diagnose(tmp_path / "run.db") if f.severity == "error"] == []
    assert seen == []
    assert capsys.readouterr().err == ""
    assert open_run(tmp_path / "run.db").events == []


def test_a_call_that_raises_costs_a_warning_and_no_later_alert(tmp_path: Path) -> None:
    def call(finding: Finding) -> None:
        raise RuntimeError("pager is off")

    told = pytest.warns(RecordingWarning, match="did not arrive: your function raised RuntimeError")
    with told, record(tmp_path / "run.db", Alerts(call=call, every=0.05, quiet=True)) as out:
        train(out, 40, broken_at=30)
    run = open_run(tmp_path / "run.db")
    assert len(run) == 40
    assert [event.kind for event in run.events].count("alert") >= 1


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """A loopback server that keeps what is posted to it; /fail answers with an error."""
    posted: list[tuple[str, dict]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.headers["Content-Type"], json.loads(body)))
            self.send_response(500 if self.path == "/fail" else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.posted = posted
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def address(server: HTTPServer, path: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_a_webhook_gets_the_finding_as_json(server: HTTPServer, tmp_path: Path) -> None:
    with record(tmp_path / "run.db", f"alerts:{address(server, '/hook')}") as out:
        train(out, 40, broken_at=30)
    events = [e for e in open_run(tmp_path / "run.db").events if e.kind == "alert"]
    assert [body["id"] for _, body in server.posted] == [event.data["id"] for event in events]
    kind, body = server.posted[0]
    assert kind == "application/json"
    assert body["severity"] == "error"
    assert body["id"] in body["text"]
    assert body["docs"].startswith("https://")


def test_a_webhook_that_fails_costs_a_warning(server: HTTPServer, tmp_path: Path) -> None:
    sink = Alerts(address(server, "/fail"), every=0.05, quiet=True)
    told = pytest.warns(RecordingWarning, match=r"did not arrive: the webhook answered HTTP 500")
    with told, record(tmp_path / "run.db", sink) as out:
        train(out, 40, broken_at=30)
    assert len(open_run(tmp_path / "run.db")) == 40


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("file:///etc/S3CRET", "Apprise cannot read"),
        ("slack://S3CRET", "Apprise cannot read"),
        ("S3CRET", "begins with http"),
        ("http://", "names no host"),
        ("https:///S3CRET", "names no host"),
        ("http://h:S3CRET/", "a port that cannot be"),
        ("http://[::1/S3CRET", "names no host"),
        ("http://h..S3CRET/", "names no host"),
        (f"http://{'h' * 64}/S3CRET", "names no host"),
        ("http://h<S3CRET>/", "names no host"),
        ("http://h/S3CRET x", "a space"),
        ("http://h/S3CRET\r\nHost: x", "a space or an unprintable"),
    ],
)
def test_an_address_that_cannot_be_is_refused_at_the_start_and_not_repeated(
    wrong: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        Alerts(wrong)
    assert "S3CRET" not in str(refused.value)
    for words in (["--alert", wrong], ["--log", f"alerts:{wrong}"]):
        said = CliRunner().invoke(group, ["run", *words, __file__])
        assert said.exit_code == 2
        assert "S3CRET" not in said.output


def test_an_address_is_asked_for_as_a_browser_would() -> None:
    with raw_server(lambda c: c.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")) as (root, asked):
        host = root.partition("//")[2]
        delivery.post(f"HTTP://me:p%40ss@{host}/caf\u00e9?q=\u00e9#here", {"id": "SG101"})
        delivery.post(f"{root}?q", {"id": "SG101"})
    first, second = asked
    assert first.startswith(b"POST /caf%C3%A9?q=%C3%A9 HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Basic bWU6cEBzcw==\r\n" in first
    assert second.startswith(b"POST /?q HTTP/1.1\r\n")
    assert b"Authorization" not in second


def test_the_address_is_in_no_warning_and_no_name() -> None:
    sink = Alerts("http://127.0.0.1:9/S3CRET?token=S3CRET", quiet=True)
    assert str(sink) == "alerts"
    with pytest.warns(RecordingWarning, match="did not arrive: URLError") as told:
        sink._posts[0].send(Finding("SG101", "NaN", "error", 1.0))
    assert "S3CRET" not in str(told[0].message)


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers in its own way; its address, and the requests."""
    listening = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                asked.append(connection.recv(65536))
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
    finally:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@pytest.mark.parametrize(
    ("line", "where", "requests"),
    [
        (b"302 Found", "{here}/b", 1),  # would become a GET
        (b"303 See Other", "{here}/b", 1),
        (b"307 Temporary Redirect", "http://127.0.0.2:1/b", 1),  # another host
        (b"307 Temporary Redirect", "https://127.0.0.1/b", 1),  # another scheme
        (b"307 Temporary Redirect", "file:///etc/passwd", 1),
        (b"308 Permanent Redirect", "{here}/b", 5),  # in a circle, followed a few times
    ],
)
def test_a_redirect_is_followed_to_the_same_place_only(
    line: bytes, where: str, requests: int
) -> None:
    here: list[str] = []

    def answer(connection: socket.socket) -> None:
        there = where.format(here=here[0]).encode()
        connection.sendall(
            b"HTTP/1.1 " + line + b"\r\nLocation: " + there + b"\r\nContent-Length: 0\r\n\r\n"
        )

    with raw_server(answer) as (root, asked):
        here.append(root)
        with pytest.raises(urllib.error.HTTPError):
            delivery.post(f"{root}/a", {"id": "SG101"})
        assert 1 <= len(asked) <= requests
        assert all(words.startswith(b"POST ") for words in asked)


def test_a_service_of_apprise_follows_no_redirect() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 308 Permanent Redirect\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n"
        )

    with raw_server(answer) as (root, asked):
        assert not apprise_of(f"json://{root.partition('//')[2]}/a").notify("body", "title")
    assert len(asked) == 1


def test_an_apprise_that_would_follow_redirects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses._apprise.cache_clear()
    monkeypatch.delattr(apprise.AppriseAsset, "http_redirects")
    with pytest.raises(UsageError, match=r"Apprise [\d.]+ sends messages wherever"):
        Alerts("json://localhost")


def test_a_server_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        for _ in range(1000):  # each byte comes soon, the whole not for 20 seconds
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if over.wait(0.02):
                return

    monkeypatch.setattr(delivery, "DELIVERY_SECONDS", 0.3)
    finding = Finding("SG101", "NaN", "error", 1.0)
    with raw_server(drip) as (root, asked):
        sink = Alerts(f"{root}/a", quiet=True)
        with pytest.warns(RecordingWarning, match="has not answered within"):
            sink._posts[0].send(finding)
        assert sink._posts[0]._thread is not None
        assert sink._posts[0]._thread.join(10)  # and not listened to any longer
        over.set()
    assert len(asked) == 1


def test_an_alert_waits_for_none_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "DELIVERY_SECONDS", 0.1)
    over = threading.Event()
    post = delivery.Post(delivery.Address("json://localhost"))
    monkeypatch.setattr(delivery, "_notify", lambda *_: over.wait(10))  # as a service may
    finding = Finding("SG101", "NaN", "error", 1.0)
    with pytest.warns(RecordingWarning, match="has not answered within"):
        post.send(finding)
    with pytest.warns(RecordingWarning, match="still holds the one before"):
        post.send(finding)
    over.set()


def test_the_body_of_a_redirect_is_not_read() -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /b\r\n\r\n")
        for _ in range(5_000):
            connection.sendall(b"x" * 100_000)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raw_server(endless) as (root, _), pytest.raises(urllib.error.HTTPError):
        delivery.post(f"{root}/a", {"id": "SG101"})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.parametrize("said", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 " + b"x" * 100_000])
def test_a_server_that_speaks_no_http_costs_a_warning(said: bytes) -> None:
    with raw_server(lambda connection: connection.sendall(said)) as (root, _):
        sink = Alerts(f"{root}/S3CRET", quiet=True)
        with pytest.warns(RecordingWarning, match="did not arrive") as told:
            sink._posts[0].send(Finding("SG101", "NaN", "error", 1.0))
    assert "S3CRET" not in str(told[0].message)


def test_looking_rests_in_proportion_to_its_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def slow_diagnose(path: Path) -> list[Finding]:
        clock[0] += 10.0
        return []

    monkeypatch.setattr(alerts, "diagnose", slow_diagnose)
    monkeypatch.setattr(alerts.time, "monotonic", lambda: clock[0])
    sink = Alerts(every=5.0)
    with RunWriter(tmp_path / "run.db") as out:
        sink.open(out._recorder._head())
    sink._steps_since, clock[0] = 1, 6.0
    sink.take([])
    assert clock[0] == 16.0
    assert sink._next_look == 16.0 + 200.0


# -- by choice, through services, and to an end ----------------------------------------------------


class Rules:
    """What `diagnose` gives in these tests: one warning, then one error."""

    warning = Finding("SG202", "Spikes.", "warning", 0.9, steps=(3,))
    error = Finding("SG101", "NaN in fc.", "error", 0.9, steps=(7,), fixes=("x = 1",))

    @classmethod
    def both(cls, path: Path) -> list[Finding]:
        return [cls.error, cls.warning, Finding("SG402", "Never.", "info", 0.9)]


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> type[Rules]:
    monkeypatch.setattr(alerts, "diagnose", Rules.both)
    return Rules


@pytest.mark.parametrize(("on", "ids"), [("error", ["SG101"]), ("warning", ["SG101", "SG202"])])
def test_warnings_are_told_by_choice(
    tmp_path: Path, rules: type[Rules], on: str, ids: list[str]
) -> None:
    seen: list[Finding] = []
    with record(tmp_path / "run.db", Alerts(call=seen.append, quiet=True, on=on)) as out:
        train(out, 2, broken_at=None)
    assert [f.id for f in seen] == ids
    with pytest.raises(UsageError, match="one of error, warning"):
        Alerts(on="info")


def test_a_warning_that_grows_graver_is_told_again_and_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = Finding("SG201", "It grows.", "warning", 0.9, steps=(3,))
    error = Finding("SG201", "It has grown.", "error", 0.9, steps=(3,))
    looks = iter([[warning], [warning], [error]])
    monkeypatch.setattr(alerts, "diagnose", lambda path: next(looks))
    seen: list[Finding] = []
    reasons: list[str] = []
    sink = Alerts(call=seen.append, quiet=True, on="warning", stop_on="error")
    tensors = (TensorInfo("w", (1,)),)
    stop = lambda reason, step: reasons.append(reason)  # noqa: E731
    sink.open(Head(tmp_path / "run.db", {}, tensors, lambda *_: None, None, stop))
    for _ in range(3):
        sink._look()
    assert seen == [warning, error]
    assert reasons == ["SG201 at step 3: It has grown."]


def torch_training(out: RunWriter) -> None:
    """Goes on and on."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with attach(optimizer, "none", run=out):
        while True:
            weight.grad = torch.ones(2)
            optimizer.step()
            time.sleep(0.001)


def jax_training(out: RunWriter) -> None:
    """As `torch_training`."""
    tx, params = sj.guard(optax.sgd(0.1), "none"), {"w": jnp.ones(2)}
    state, recorder = tx.init(params), sj.Recorder(out)
    while True:
        _, state = tx.update(params, state, params)
        recorder.record(state)
        time.sleep(0.001)


def training_by_hand(out: RunWriter) -> None:
    """Goes on, and never comes by anything of ours but `write_step`."""
    while True:
        train(out, 1, broken_at=None)
        time.sleep(0.001)


@pytest.mark.parametrize("training", [torch_training, jax_training])
@pytest.mark.parametrize(
    "asked", [{"stop_on": "error"}, {"call": lambda finding: "stop"}], ids=["severity", "function"]
)
def test_a_training_is_ended_between_two_steps_and_says_why(
    tmp_path: Path,
    rules: type[Rules],
    asked: dict[str, Any],
    training: Callable[[RunWriter], None],
) -> None:
    with record(tmp_path / "run.db", Alerts(quiet=True, every=0.01, **asked)) as out:
        stopped = pytest.raises(TrainingStopped, match=r"SG101 at step 7: NaN in fc\.")
        with stopped:
            training(out)
    run = open_run(tmp_path / "run.db")
    assert len(run) > 0
    assert run.info["exit"] == "stopped"
    assert run.info["stopped_by"] == "SG101 at step 7: NaN in fc."
    assert [(e.step, e.data) for e in run.events if e.kind == "stop"] == [
        (7, {"reason": "SG101 at step 7: NaN in fc."})
    ]


def test_a_training_that_does_not_come_by_is_interrupted(
    tmp_path: Path, rules: type[Rules], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "GRACE_SECONDS", 0.2)
    out = record(tmp_path / "run.db", Alerts(quiet=True, every=0.01, stop_on="error"))
    with pytest.raises(TrainingStopped, match=r"SG101 at step 7: NaN in fc\."):
        training_by_hand(out)
    out.close()
    assert open_run(tmp_path / "run.db").info["exit"] == "stopped"


def test_one_that_has_ended_is_left_alone_while_it_saves_its_model(
    tmp_path: Path, rules: type[Rules], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted: list[str] = []
    asked: list[str] = []
    monkeypatch.setattr(alerts, "interrupt", interrupted.append)

    def took_a_step(when: float) -> StepItem:
        one = np.ones(1)
        record = StepRecord(0, norm=1.0, time=when)
        return StepItem(record, when, np.zeros(1, np.int64), one, one, 0 * one, 0 * one)

    def stop(reason: str, step: int | None) -> None:
        asked.append(reason)

    sink = Alerts(quiet=True, every=0.0, stop_on="error")
    tensors = (TensorInfo("w", (1,)),)
    head = Head(tmp_path / "run.db", {}, tensors, lambda *_: None, None, stop)
    now = time.time()
    sink.take([head, took_a_step(now)])
    sink.take([took_a_step(now)])  # the one that was under way
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    monkeypatch.setattr(time, "monotonic", lambda: now + 1000)
    sink.take([])
    assert len(asked) == 1
    assert interrupted == []
    sink.take([took_a_step(now + 1000)])
    sink.take([took_a_step(now + 2000)])
    assert interrupted == asked  # once


def test_wandb_and_trackio_pass_alerts_on_while_a_training_goes_on(
    tmp_path: Path, rules: type[Rules], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own `alert` is called with its level; an export of the run afterwards alerts nobody."""
    levels = SimpleNamespace(ERROR="error!", WARN="warn!")
    for module in (wandb_sink, trackio_sink):
        told: list[tuple[str, str, str]] = []

        def alert(
            title: str, text: str, *, level: str, told: list[tuple[str, str, str]] = told
        ) -> None:
            told.append((title, text, level))

        own = SimpleNamespace(
            alert=alert, log=lambda *_, **__: None, finish=list, define_metric=lambda *_, **__: None
        )
        library = SimpleNamespace(
            AlertLevel=levels, run=None, init=lambda own=own, **_: own, Settings=lambda **_: None
        )
        monkeypatch.setattr(module, f"_{module.SINK.kind}", lambda library=library: library)
        path = tmp_path / f"{module.SINK.kind}.db"
        with record(path, module.SINK("p"), Alerts(quiet=True, on="warning")) as out:
            train(out, 2, broken_at=None)
        assert told == [
            ("steadygrad SG101 at step 7: NaN in fc.", "x = 1", "error!"),
            ("steadygrad SG202 at step 3: Spikes.", "", "warn!"),
        ]
        replay(path, module.SINK("p"))
        assert len(told) == 2


SECRET = "S3CRET-t0ken"


def test_a_service_of_apprise_is_told_and_its_address_stands_nowhere(
    tmp_path: Path,
    rules: type[Rules],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Run file and its side files, logs, output, `repr`, pickles, the plan, JSON of the run."""
    got: list[tuple[str, str, str]] = []
    apprise_of("json://localhost")  # its services are loaded once, without their warnings

    @notify(on="steadytest")
    def deliver(body: str, title: str, notify_type: str, *_: Any, **kwargs: Any) -> bool:
        logging.getLogger("apprise").warning("no answer from %s", SECRET)
        logging.getLogger("urllib3.connectionpool").debug("POST /%s", SECRET)
        got.append((body, title, str(notify_type)))
        return len(got) != 2  # the second is refused

    caplog.set_level(logging.DEBUG)
    spec = f"steadytest://{SECRET}@host/{SECRET}"
    sink = Alerts(spec, on="warning")
    refused = pytest.warns(RecordingWarning, match="did not arrive: the service did not take it")
    with refused as warned, record(tmp_path / "run.db", sink) as out:
        train(out, 2, broken_at=None)
    assert [title for _, title, _ in got] == [
        "SG101 at step 7: NaN in fc.",
        "SG202 at step 3: Spikes.",
    ]
    assert "x = 1" in got[0][0]
    plan = Plan("train.py", logs=(f"alerts:{spec}",))
    run = open_run(tmp_path / "run.db")
    shown = [
        repr(sink), str(sink), repr(vars(sink)), repr(sink._posts[0]._address), repr(plan),
        repr(pickle.dumps(sink._posts[0]._address)), caplog.text, *map(str, capfd.readouterr()),
        *(str(w.message) for w in warned), json.dumps(run.info), repr(run.events),
    ]  # fmt: skip
    shown += [file.read_bytes().decode("latin-1") for file in tmp_path.iterdir()]
    assert [text for text in shown if SECRET in text] == []
    with pytest.raises(UsageError) as wrong:
        Alerts(f"nosuchservice://{SECRET}")
    assert SECRET not in "".join(traceback.format_exception(wrong.value))
