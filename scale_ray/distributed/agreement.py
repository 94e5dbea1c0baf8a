"""What all workers of a training do after the same step: to stop, or to save because a node is about to go away."""

from __future__ import annotations

import time
from contextlib import suppress
from enum import Enum
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.collective import broadcast_from_rank_zero

# The workers ask about once in this time: each time costs them some milliseconds.
_ASK_S = 1.0


class Request(Enum):
    """What the workers were asked for."""

    NOTHING = "nothing"
    SAVE = "save"
    STOP = "stop"


class Agreement:
    """Asks the driver and Ray, on behalf of all workers and after the same step, whether to save or to stop.

    Workers that saved after different steps would wait for each other for ever.
    """

    def __init__(self, channel: Any) -> None:
        """`channel` is that to the driver; None except in the first worker, which asks."""
        self._channel = channel
        self._left, self._steps, self._asked_s = 1, 1, time.monotonic()
        self._draining: set[str] = set()

    def after_step(self) -> Request:
        """To be called by every worker after each step."""
        self._left -= 1
        if self._left:
            return Request.NOTHING
        answer = broadcast_from_rank_zero(self._ask() if self._channel is not None else {})
        self._left = self._steps = answer["steps"]
        if answer["stop"]:
            return Request.STOP
        # All workers get the same answer. One checkpoint is saved for each node that is about to go away.
        info = ray.train.get_preemption_info()
        draining = set(info.preempted_node_ids) if info is not None else set()
        is_new = bool(draining - self._draining)
        self._draining |= draining
        return Request.SAVE if is_new else Request.NOTHING

    def _ask(self) -> dict[str, Any]:
        now_s = time.monotonic()
        per_step_s = (now_s - self._asked_s) / self._steps
        self._asked_s = now_s
        stop = False
        with suppress(RayError):  # the channel is lost: the training goes on without it
            stop = ray.get(self._channel.is_stopping.remote())
        return {
            "stop": stop,
            "steps": max(int(_ASK_S / max(per_step_s, 1e-6)), 1),
        }
