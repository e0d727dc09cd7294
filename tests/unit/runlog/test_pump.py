"""The queue between training and disk: bounded, counted, and never in the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from steadygrad.runlog.pump import Pump


class Consumer:
    """Collects what a pump hands over; can be made slow or broken."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()
        self.finished = 0
        self.failures: list[BaseException] = []
        self.error: Exception | None = None

    def consume(self, items: list[Any]) -> None:
        self.gate.wait(20)
        if self.error:
            raise self.error
        self.items.extend(items)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


@pytest.fixture
def pump(consumer: Consumer) -> Callable[..., Pump]:
    def make(**options: Any) -> Pump:
        settings = {"interval": 0.01, **options}
        return Pump(consumer.consume, consumer.finish, consumer.failures.append, **settings)

    return make


def test_items_arrive_in_order_and_close_finishes_once(
    pump: Callable[..., Pump], consumer: Consumer
) -> None:
    running = pump(batch=7)
    assert all(running.put(i, 1) for i in range(100))
    assert running.close()
    assert running.close()
    assert consumer.items == list(range(100))
    assert consumer.finished == 1


def test_flush_waits_for_what_was_queued(pump: Callable[..., Pump], consumer: Consumer) -> None:
    running = pump(interval=30.0)
    running.put("a", 1)
    assert running.flush()
    assert consumer.items == ["a"]
    running.close()


def test_flush_gives_up_on_a_hanging_consumer(
    pump: Callable[..., Pump], consumer: Consumer
) -> None:
    consumer.gate.clear()
    running = pump()
    running.put("a", 1)
    assert not running.flush(timeout=0.05)
    consumer.gate.set()
    assert running.close()


def test_a_full_queue_waits_then_drops_then_recovers(
    pump: Callable[..., Pump], consumer: Consumer
) -> None:
    consumer.gate.clear()
    running = pump(max_bytes=1000, patience=0.05)
    taken = [running.put(i, 100) for i in range(30)]
    assert 11 <= sum(taken) <= 22  # as many again may be in the consumer's hands
    began = time.monotonic()
    assert not any(running.put(i, 100) for i in range(1000))
    assert time.monotonic() - began < 1.0  # after one wait in vain, dropping is immediate
    consumer.gate.set()
    assert running.flush()
    assert running.put("again", 100)
    running.close()
    assert consumer.items[-1] == "again"


def test_a_failing_consumer_ends_the_pump_and_releases_waiters(
    pump: Callable[..., Pump], consumer: Consumer
) -> None:
    consumer.error = OSError("disk gone")
    running = pump()
    running.put("a", 1)
    assert not running.flush()
    assert [str(e) for e in consumer.failures] == ["disk gone"]
    assert not running.usable
    assert not running.put("b", 1)
    assert running.close()
    assert consumer.finished == 0


def test_after_close_nothing_is_taken(pump: Callable[..., Pump], consumer: Consumer) -> None:
    running = pump()
    running.close()
    assert not running.put("late", 1)
    assert not running.flush()
    assert consumer.items == []


def test_closing_waits_for_a_thread_at_work_and_not_for_one_that_hangs() -> None:
    stuck = threading.Event()

    def compute(items: list[Any]) -> None:
        began = time.thread_time()
        while items and time.thread_time() - began < 0.7:
            pass

    def hang(items: list[Any]) -> None:
        if items:
            stuck.wait(60)

    ended = []
    for consume in (compute, hang):
        pump = Pump(consume, lambda: None, print, interval=0.01)
        pump.put("item", 1)
        ended.append(pump.close(timeout=40.0, idle=0.3))
    stuck.set()
    assert ended == [True, False]
