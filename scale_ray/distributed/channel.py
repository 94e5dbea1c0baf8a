"""Messages between the training workers and the driver: metrics, notes, the reason of a failure, the wish to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError

from scale_ray.console import Progress
from scale_ray.distributed.resources import NODE_ID_LABEL
from scale_ray.errors import Terminated, first_line
from scale_ray.tracking import RunRecord

_POLL_S = 0.5


class Channel:
    """A queue of messages from the workers to the driver, and the first failure of any worker; runs as an actor."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, Any]] = []
        self._failure: Exception | None = None
        self._is_stopping = False

    def put(self, message: tuple[str, Any]) -> None:
        """Add a message: its kind and its content."""
        self._waiting.append(message)

    def take(self) -> list[tuple[str, Any]]:
        """Remove and return all waiting messages, in order."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def fail(self, error: Exception) -> None:
        """Record a failure that a restart would repeat; only the first one is kept."""
        self._failure = self._failure or error

    def failure(self) -> Exception | None:
        """The recorded failure, if any."""
        return self._failure

    def stop(self) -> None:
        """Ask the workers to save a checkpoint and to end."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        """Whether the workers were asked to end."""
        return self._is_stopping


def open_channel() -> Any:
    """A channel on the driver's node, so that it lives as long as whoever reads it."""
    # By its label, as Ray Train does: an affinity that is soft was seen to end on another node.
    here = {NODE_ID_LABEL: ray.get_runtime_context().get_node_id()}
    return ray.remote(num_cpus=0, label_selector=here)(Channel).remote()


class ChannelReader:
    """A thread of the driver that forwards the workers' messages to the console, the progress and MLflow.

    If the channel is lost, the training goes on without it; one line says what is not shown.
    """

    def __init__(self, channel: Any, progress: Progress, record: RunRecord, say: Callable[[str], None]) -> None:
        self.failure: Exception | None = None
        # Whether the workers have ended because they were asked to.
        self.is_stopped = False
        self._is_training, self._stop_asked = False, threading.Event()
        self._channel, self._progress, self._record, self._say = channel, progress, record, say
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="metrics", daemon=True)
        self._thread.start()

    @contextmanager
    def stopping_at_sigterm(self) -> Iterator[None]:
        """Within the context, SIGTERM asks the workers to save a checkpoint and to end; a second one ends at once.

        A training that has not begun has nothing to save. Outside the main thread, nothing changes.
        """
        before = signal.getsignal(signal.SIGTERM)
        if not callable(before) or threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(_signal: int, _frame: object) -> None:
            if self._stop_asked.is_set() or not self._is_training:
                raise Terminated
            self._stop_asked.set()

        signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def stop(self) -> None:
        """Forward the remaining messages; afterwards `failure` is the workers' failure, if there was one."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()
        with suppress(RayError):  # it is lost, which was said
            self.failure = ray.get(self._channel.failure.remote())
            ray.kill(self._channel)

    def _listen(self) -> None:
        try:
            asked = False
            while not self._stopped.wait(_POLL_S):
                self._forward()
                if self._stop_asked.is_set() and not asked:
                    asked = True
                    self._say("stopping: the workers save a checkpoint")
                    ray.get(self._channel.stop.remote())
            self._forward()
        except Exception as error:  # noqa: BLE001 - a thread that ends in silence would lose all that follows
            self._say(
                f"the metrics of the workers arrive no more ({first_line(error)}): progress and MLflow lack what "
                "follows; history.parquet has the metrics of all epochs when the run is finished"
            )

    def _forward(self) -> None:
        for kind, content in ray.get(self._channel.take.remote()):
            if kind == "note":
                self._say(content)
            elif kind == "begun":
                if self._is_training:  # after a worker or a node was lost, or with another one
                    self._say(f"the training continues from step {content['step']} on {content['workers']} workers")
                self._is_training = True
            elif kind == "stopped":
                self.is_stopped = True
                self._say(content)
            elif kind == "steps":
                for step, values in content:
                    self._record.metrics({f"step/{name}": value for name, value in values.items()}, step)
            else:
                values = dict(content)
                epoch = int(values.pop("epoch"))
                self._record.metrics(values, epoch)
                self._progress.to(epoch, _progress_note(values))


def _progress_note(values: Mapping[str, float]) -> str:
    formats = {"loss": "loss {:.3f}", "set_top1": "set top-1 {:.2f}", "validation_loss": "validation loss {:.3f}"}
    return ", ".join(form.format(values[name]) for name, form in formats.items() if name in values)
