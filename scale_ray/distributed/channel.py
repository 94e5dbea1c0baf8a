"""What workers tell the driver while they train: metrics, remarks, and why they gave up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray

from scale_ray.console import Progress
from scale_ray.tracking import RunRecord

_POLL_S = 0.5


class Channel:
    """What workers tell the driver, in order; and, once for all of them, why they gave up."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, Any]] = []
        self._failure: Exception | None = None

    def put(self, told: tuple[str, Any]) -> None:
        self._waiting.append(told)

    def take(self) -> list[tuple[str, Any]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def fail(self, error: Exception) -> None:
        self._failure = self._failure or error

    def failure(self) -> Exception | None:
        return self._failure


class ChannelReader:
    """A thread of the driver that passes on what the workers tell."""

    def __init__(self, channel: Any, progress: Progress, record: RunRecord, say: Callable[[str], None]) -> None:
        self.failure: Exception | None = None
        self._channel, self._progress, self._record, self._say = channel, progress, record, say
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Pass on what is left; afterwards `failure` is why the workers gave up, if they did."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()
        self.failure = ray.get(self._channel.failure.remote())
        ray.kill(self._channel)

    def _listen(self) -> None:
        while not self._stopped.wait(_POLL_S):
            self._pass_on()
        self._pass_on()

    def _pass_on(self) -> None:
        for kind, told in ray.get(self._channel.take.remote()):
            if kind == "note":
                self._say(told)
            elif kind == "steps":
                for step, values in told:
                    self._record.metrics({f"step/{name}": value for name, value in values.items()}, step)
            else:
                values = dict(told)
                epoch = int(values.pop("epoch"))
                self._record.metrics(values, epoch)
                self._progress.to(epoch, _described(values))


def _described(values: Mapping[str, float]) -> str:
    shown = {"loss": "loss {:.3f}", "set_top1": "set top-1 {:.2f}", "validation_loss": "validation loss {:.3f}"}
    return ", ".join(form.format(values[name]) for name, form in shown.items() if name in values)
