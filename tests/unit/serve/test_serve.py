"""The live page, from outside: who is answered, and what a Chromium makes of it."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo

HOSTILE = "<img src=x onerror=alert(1)>"
HANGS = 60
"""Seconds after which a server is taken to hang; no measure, machines may be busy."""


def write(writer: RunWriter, first: int, last: int, norm: float = 1.0) -> None:
    ids = writer.add_tensors([TensorInfo(HOSTILE, (2,))]) if first == 0 else [0]
    for step in range(first, last):
        value = norm * (1 + 0.1 * (step % 7))
        record = StepRecord(step, loss=1 + 1 / (step + 1), norm=value)
        writer.write_step(record, ids, [value], [value], [0], [0])
    writer.flush()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ended runs, one of them hostile, and two files that cannot be read."""
    path = tmp_path_factory.mktemp("runs")
    with RunWriter(path / "plain.db", info={"policy": "norm:1.0"}) as writer:
        write(writer, 0, 80)
    with RunWriter(path / f"{HOSTILE}.db", info={"policy": HOSTILE, "script": HOSTILE}) as writer:
        write(writer, 0, 80)
    whole = (path / "plain.db").read_bytes()
    (path / "cut.db").write_bytes(whole[: len(whole) // 3])
    (path / "noise.db").write_bytes(whole[:100] + os.urandom(5000))
    return path


class Server:
    """A `steadygrad serve` of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        command = [sys.executable, "-m", "steadygrad", "serve", str(folder), "--port", "0", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]
        self.port = int(re.findall(r":(\d+)/", self.address)[0])

    def answer(self, path: str = "/", method: str = "GET", **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method, headers=named
        )
        try:
            with urllib.request.urlopen(request, timeout=HANGS) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    def raw_answer(self, headers: str) -> int:
        with socket.create_connection(("127.0.0.1", self.port), timeout=HANGS) as asking:
            asking.sendall(f"GET / HTTP/1.1\r\n{headers}\r\n".encode())
            return int(asking.recv(12).removeprefix(b"HTTP/1.1 "))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    started = Server(folder)
    yield started
    started.close()


ELSEWHERE = [
    *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0", "127.1"),
    *("2130706433", "[::ffff:127.0.0.1]", "[", "", "127.0.0.1#evil.example", "u@127.0.0.1"),
    *("127.0.0.1/evil", "127.0.0.1?evil", "127.0.0.1:80:80", "localhost,evil.example"),
]
"""Names that lead to this machine where somebody wants it, and what readers differ over."""


def test_only_this_machine_is_answered_and_only_for_reading(server: Server) -> None:
    assert server.address == f"http://127.0.0.1:{server.port}/"
    assert server.answer() == 200
    assert server.answer(Host=f"localhost:{server.port}") == 200
    for host in ELSEWHERE:
        assert server.answer(Host=host) == 403, host
    for origin in ("http://[", "http://evil.example", "null", f"http://u@127.0.0.1:{server.port}"):
        assert server.answer(Origin=origin) == 403, origin
    assert server.answer(Origin=f"http://127.0.0.1:{server.port}") == 200
    assert server.answer(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors") == 403
    assert {server.answer(method=m) for m in ("POST", "PUT", "DELETE", "OPTIONS")} == {405}
    assert server.answer("/assets/..%2f..%2fpage.py") == 404
    assert server.answer("/report?runs=../../etc/passwd") == 404
    assert server.answer("/report") == server.answer("/report/") == 404
    assert server.answer("/events", method="HEAD") == 200  # and it ends
    here, there = f"Host: 127.0.0.1:{server.port}\r\n", "Host: evil.example\r\n"
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    assert server.raw_answer(here + there) == server.raw_answer(there + upgrade) == 403
    assert server.raw_answer(here + upgrade) == 200  # as any other question


def test_elsewhere_needs_the_token_that_is_printed(folder: Path) -> None:
    server = Server(folder, "--host", "0.0.0.0")
    try:
        token = server.address.partition("token=")[2]
        assert len(token) >= 32
        assert server.answer() == 403
        assert server.answer("/?token=wrong") == 403
        assert server.answer(Cookie=f"steadygrad-token={token}") == 200
        assert server.answer("/events", Cookie="steadygrad-token=wrong") == 403
        assert server.answer(Cookie=f"steadygrad-token={token}", Origin="http://evil") == 403
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANGS)) as asking:
            asking.request("GET", f"//evil.example/?token={token}")
            assert asking.getresponse().getheader("Location") == "/evil.example/"
    finally:
        server.close()


def test_a_port_that_is_taken_is_told_in_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "steadygrad", "serve", str(folder), "--port", port],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert "add --port 0" in done.stderr


@pytest.fixture(scope="module")
def context(chromium: Any) -> Iterator[Any]:
    made = chromium.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    made.set_default_timeout(60_000)
    yield made
    made.close()


@pytest.fixture
def tab(context: Any, server: Server) -> Iterator[Any]:
    """A page that may not complain, ask anything elsewhere, or open a dialog."""
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("dialog", lambda d: (complaints.append("dialog"), d.dismiss()))
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url))
    yield page
    assert complaints == []
    assert [u for u in asked if not u.startswith((server.address, "data:", "blob:"))] == []
    page.close()


NAMELESS = """() => [...document.querySelectorAll('button, a, input, select, td svg, [role=img]')]
  .filter(e => !(e.getAttribute('aria-label') || e.textContent
    || [...(e.labels || [])].map(l => l.textContent).join()).trim()).map(e => e.outerHTML)"""


@pytest.mark.browser
def test_the_list(tab: Any, server: Server) -> None:
    tab.goto(server.address)
    tab.wait_for_function("() => document.querySelectorAll('tbody b.ok').length === 2")
    names = tab.locator("tbody th").all_inner_texts()
    assert sorted(names) == sorted(["plain.db", f"{HOSTILE}.db", "cut.db", "noise.db"])
    assert tab.locator("td.unreadable").count() == 2
    assert tab.locator("tbody a").count() == 2
    assert tab.locator("tbody svg path[d^=M]").count() == 2
    assert tab.locator("img").count() == 0
    assert tab.evaluate(NAMELESS) == []
    tab.select_option("#by-state", "ended")
    assert tab.locator("tbody tr:visible").count() == 2
    tab.select_option("#by-policy", "norm:1.0")
    assert tab.locator("tbody tr:visible").all_inner_texts()[0].split()[0] == "plain.db"
    tab.select_option("#by-policy", "")
    tab.fill("#by-name", "PLAIN")
    assert tab.locator("#count").inner_text() == "1 of 4"
    tab.fill("#by-name", "")
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
    tab.set_viewport_size({"width": 1200, "height": 900})
    tab.emulate_media(color_scheme="dark")
    tab.reload()
    dark = tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
    tab.click("#theme")
    assert dark != tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
    tab.evaluate("() => localStorage.clear()")


@pytest.mark.browser
def test_two_are_chosen_by_keyboard_and_stand_side_by_side(tab: Any, server: Server) -> None:
    tab.goto(server.address)
    tab.wait_for_selector("html[data-ready=true]")
    for name in ("plain.db", f"{HOSTILE}.db"):
        tab.locator(f'input[aria-label="Choose {name}"]').focus()
        tab.keyboard.press("Space")
    tab.locator("#compare").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("html[data-ready=true] .plot[data-chart=overlay] .main-svg")
    assert tab.locator("table.compare tbody tr").count() == 2
    assert tab.locator("img, article b").count() == 0
    tab.locator(".mark").click()
    tab.wait_for_selector("table.runs")


@pytest.mark.browser
def test_a_running_training_is_followed_on_the_list_and_in_its_report(
    tab: Any, context: Any, server: Server, folder: Path
) -> None:
    steps = """() => [...document.querySelectorAll('tbody tr')]
      .find(r => r.cells[1].textContent === 'now.db')?.cells[4].textContent"""
    with RunWriter(folder / "now.db", info={"policy": "none"}) as writer:
        write(writer, 0, 60)
        tab.goto(server.address)
        tab.wait_for_function(f"() => ({steps})() === '60'")
        assert tab.locator("td.running").count() == 1
        write(writer, 60, 100)
        tab.wait_for_function(f"() => ({steps})() === '100'")
        ids = [0]
        for step in range(100, 110):
            writer.write_step(
                StepRecord(step, loss=float("nan"), norm=float("nan"), nonfinite=2),
                ids,
                [float("nan")],
                [0.0],
                [2],
                [0],
            )
        writer.flush()
        tab.wait_for_selector("#alerts li")
        assert tab.locator("#alerts li").first.inner_text().startswith("SG1")
        tab.get_by_role("link", name="now.db", exact=True).last.click()
        tab.wait_for_selector("html[data-ready=true]")
        tab.evaluate("() => { window.same = true; }")
        last = "() => Math.max(...document.querySelector('.plot').data.flatMap(t => t.x))"
        assert tab.evaluate(last) < 110
        write(writer, 110, 150)
        tab.wait_for_function(f"() => ({last})() >= 149")
        assert tab.evaluate("() => window.same")  # without loading the page anew
        assert tab.locator("#live").inner_text() == "live"
        assert tab.evaluate(NAMELESS) == []
    tab.goto(server.address)
    tab.wait_for_function("() => !document.querySelector('td.running')")
    (folder / "now.db").unlink()
    tab.wait_for_function("() => !document.querySelector('tbody').textContent.includes('now.db')")
