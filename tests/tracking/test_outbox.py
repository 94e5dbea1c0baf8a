"""Calls to a service that is away are kept, and made in their order when it answers."""

from __future__ import annotations

import threading
import time

import pytest

from scale_ray.tracking import outbox as module
from scale_ray.tracking.outbox import Outbox


class Away(Exception):
    """The service does not answer."""


class Refused(Exception):
    """The service answers that it does not want it."""


class Service:
    """Takes what it is sent, unless it is away; refuses the number 99."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.is_away = False

    def take(self, number: int) -> bool:
        if self.is_away:
            raise Away
        if number == 99:
            raise Refused
        self.taken.append(number)
        return True


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def outbox(said, monkeypatch) -> Outbox:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "_LAST_PAUSE_S", 0.02)
    monkeypatch.setattr(module, "_SILENT_S", 0.05)
    return Outbox("the service", said.append, lambda error: type(error).__name__, lambda e: isinstance(e, Refused))


def test_calls_are_made_in_order_and_the_thread_ends(outbox, service, said):
    for number in range(50):
        outbox.put(lambda number=number: service.take(number))
    assert outbox.settle(5)
    assert service.taken == list(range(50))
    assert said == []
    deadline_s = time.monotonic() + 5
    while any(thread.name == "outbox" for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s


def test_what_is_put_while_the_service_is_away_arrives_when_it_answers(outbox, service, said):
    service.is_away = True
    began_s = time.monotonic()
    for number in range(20):
        outbox.put(lambda number=number: service.take(number))
    assert time.monotonic() - began_s < 0.2, "whoever puts a call never waits"
    while not said:
        time.sleep(0.01)
    assert said == ["the service does not answer (Away): the run goes on, and keeps what it records"]
    service.is_away = False
    assert outbox.settle(5)
    assert service.taken == list(range(20))
    assert said[1:] == ["the service answers again"]


def test_a_service_that_stays_away_is_waited_for_only_so_long_and_its_calls_are_dropped(outbox, service, said):
    service.is_away = True
    outbox.put(lambda: service.take(1))
    began_s = time.monotonic()
    assert not outbox.settle(0.3)
    assert 0.3 <= time.monotonic() - began_s < 3
    assert "waiting up to 0 s for the service to take what it lacks" in said
    assert outbox.reason == "Away"
    service.is_away = False
    outbox.put(lambda: service.take(2))
    assert outbox.settle(5)
    assert service.taken == [2]


def test_a_slow_service_is_waited_for_as_long_as_it_answers(outbox, service):
    left = list(range(8))

    def slowly() -> bool:
        time.sleep(0.1)
        service.take(left.pop(0))
        return not left

    outbox.put(slowly)
    assert outbox.settle(0.4)
    assert service.taken == list(range(8))


def test_a_refusal_is_not_repeated_and_does_not_hold_up_the_others(outbox, service, said):
    for number in (1, 99, 99, 2):
        outbox.put(lambda number=number: service.take(number))
    assert outbox.settle(5)
    assert service.taken == [1, 2]
    assert outbox.reason == "Refused"
    assert said == ["the service refused something that this run recorded: Refused"], "not in silence, and once"
