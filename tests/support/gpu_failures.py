"""Parts of the GPU benchmark that go wrong, each in its own way, after a first figure."""

from __future__ import annotations

import os
import time
from typing import Any


def raises(bench: Any) -> None:
    bench.record(("first",), lambda: 1)
    raise RuntimeError("no such kernel")


def dies(bench: Any) -> None:
    bench.record(("first",), lambda: 2)
    os._exit(9)


def hangs(bench: Any) -> None:
    bench.record(("first",), lambda: 3)
    time.sleep(600)


def lacks_a_figure(bench: Any) -> None:
    bench.record(("table", "broken"), lambda: 1 / 0)
    bench.record(("table", "whole"), lambda: 4)


def works(bench: Any) -> None:
    bench.record(("first",), lambda: 5)
