"""Calls to a service that may be away: a thread makes them in order, and keeps them until the service answers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

# Pauses between attempts while the service is away: doubled from the first to the last.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.5, 5.0
# A wait that is shorter is not worth a line.
_SILENT_S = 3.0

Call = Callable[[], bool]


class Outbox:
    """Makes calls in the order in which they were put, one at a time, without ever holding up whoever puts them.

    A call does one piece of work and returns whether that was the last one. If it raises an exception, it is repeated
    until it succeeds, unless `is_refused` finds that the service has answered with a refusal, which is printed once.

    Parameters
    ----------
    service
        The name of the service in messages.
    say
        Prints a message of one line.
    reason_of
        The words for an exception of a call.
    is_refused
        Whether an exception is the service's answer, which a repetition would not change.
    """

    def __init__(
        self,
        service: str,
        say: Callable[[str], None],
        reason_of: Callable[[Exception], str],
        is_refused: Callable[[Exception], bool],
    ) -> None:
        self.reason: str | None = None
        self._service, self._say, self._reason_of, self._is_refused = service, say, reason_of, is_refused
        self._refusals: set[str] = set()
        self._calls: deque[Call] = deque()
        self._changed = threading.Condition()
        self._is_running = self._is_away = False
        self._answered_s = time.monotonic()

    def put(self, call: Call) -> None:
        """Add a call; returns at once."""
        with self._changed:
            self._calls.append(call)
            if not self._is_running:
                self._is_running, self._answered_s = True, time.monotonic()
                threading.Thread(target=self._work, name="outbox", daemon=True).start()

    def settle(self, within_s: float) -> bool:
        """Wait until all calls are made; False, and they are dropped, if the service has not answered for that long.

        `reason` is then why it did not.
        """
        with self._changed:
            if self._wait(min(within_s, _SILENT_S)):
                return True
            if within_s > _SILENT_S:
                self._say(f"waiting up to {within_s:.0f} s for {self._service} to take what it lacks")
                if self._wait(within_s):
                    return True
            self._calls.clear()
            self._changed.notify_all()
            return False

    def _wait(self, within_s: float) -> bool:
        """Wait until no calls are left, for `within_s` after the beginning or the last answer."""
        started_s = time.monotonic()
        while self._calls and (left_s := max(started_s, self._answered_s) + within_s - time.monotonic()) > 0:
            self._changed.wait(left_s)
        return not self._calls

    def _work(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while (call := self._next()) is not None:
            try:
                is_done = call()
            except Exception as error:  # noqa: BLE001 - a client raises errors of many packages
                self.reason = self._reason_of(error)
                is_done = self._is_refused(error)
                if is_done:
                    self._note_refusal(self.reason)
                else:
                    self._note_away()
                    with self._changed:
                        self._changed.wait_for(lambda: not self._calls, pause_s)
                    pause_s = min(2 * pause_s, _LAST_PAUSE_S)
                    continue
            self._note_answer(call, is_done=is_done)
            pause_s = _FIRST_PAUSE_S

    def _next(self) -> Call | None:
        with self._changed:
            if not self._calls:
                self._is_running = False
                return None
            return self._calls[0]

    def _note_refusal(self, reason: str) -> None:
        if reason not in self._refusals:
            self._refusals.add(reason)
            self._say(f"{self._service} refused something that this run recorded: {reason}")

    def _note_away(self) -> None:
        if not self._is_away:
            self._is_away = True
            self._say(f"{self._service} does not answer ({self.reason}): the run goes on, and keeps what it records")

    def _note_answer(self, call: Call, *, is_done: bool) -> None:
        if self._is_away:
            self._is_away = False
            self._say(f"{self._service} answers again")
        with self._changed:
            self._answered_s = time.monotonic()
            if is_done and self._calls and self._calls[0] is call:
                self._calls.popleft()
            self._changed.notify_all()
