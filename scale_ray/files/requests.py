"""Requests to servers within a limit of time: one that is never answered is left alone and holds up nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

# Maximum number of concurrent requests to a remote file system.
REQUESTS_AT_ONCE = 16

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


def ask(
    function: Callable[[_Item], _Value], items: Sequence[_Item], *, within_s: float, at_once: int = REQUESTS_AT_ONCE
) -> list[Future[_Value]]:
    """Call `function` on every item, `at_once` at a time, and wait for at most `within_s`.

    Returns one future per item, in order: one that is not done then has no answer. Later items are not begun, and
    those that hang end with the process, since the threads are daemons.
    """
    answers: list[Future[_Value]] = [Future() for _ in items]
    waiting: SimpleQueue[tuple[Future[_Value], _Item]] = SimpleQueue()
    for pair in zip(answers, items, strict=True):
        waiting.put(pair)
    end_s = time.monotonic() + within_s

    def work() -> None:
        while time.monotonic() < end_s:
            try:
                answer, item = waiting.get_nowait()
            except Empty:
                return
            try:
                answer.set_result(function(item))
            except BaseException as error:  # noqa: BLE001 - it is the answer
                answer.set_exception(error)

    for _ in range(min(at_once, len(items))):
        Thread(target=work, daemon=True).start()
    wait(answers, timeout=max(within_s, 0.0))
    return answers
