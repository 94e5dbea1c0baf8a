"""The clock, the share of time that the GPU is busy, peak memory and synchronisations."""

from __future__ import annotations

import gc
import statistics
import subprocess
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NO_GPU = "not measured: needs a CUDA device"
# How long a measurement is repeated: about a second in five groups, or fewer groups of a slow one.
_MEASURED_S, _GROUPS, _LONGEST_S = 1.0, 5, 3.0


@dataclass
class Bench:
    """What the parts share: the device, the sizes, and how a figure is recorded.

    With `tiny` every part takes seconds on a CPU; its figures mean nothing. `send(name, value)` passes a figure on at
    once, so that it survives whatever comes after it; a name is a path through nested tables.
    """

    device: torch.device
    tiny: bool
    folder: Path
    send: Callable[[tuple[str, ...], Any], None]
    num_failed: int = 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def compiler(self) -> str:
        """The compiler behind torch.compile; a tiny run only traces, because compiling takes minutes."""
        return "eager" if self.tiny else "inductor"

    def record(self, name: tuple[str, ...], measure: Callable[..., Any], *arguments: Any) -> Any:
        """Measure and send a figure; an error is sent in its place, and the next measurement goes on."""
        try:
            value = measure(*arguments)
        except Exception as error:  # noqa: BLE001
            value = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
            self.num_failed += 1
        self.send(name, value)
        self.free()
        return value

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Return the memory of the GPU that nothing refers to any more."""
        if self.on_gpu:
            gc.collect()
            torch.cuda.empty_cache()

    def seconds_of(self, function: Callable[[], object]) -> float:
        """The median time of a call, after two to warm up: five groups of calls, one wait for the GPU per group.

        A tiny run makes one call to warm up and one that counts.
        """
        if self.tiny:
            self._group_s(function, 1)
            return self._group_s(function, 1)
        self._group_s(function, 2)
        per_group = max(int(_MEASURED_S / _GROUPS / self._group_s(function, 1)), 1)
        began_s = time.perf_counter()
        groups_s = [self._group_s(function, per_group)]
        while len(groups_s) < _GROUPS and time.perf_counter() - began_s < _LONGEST_S:
            groups_s.append(self._group_s(function, per_group))
        return statistics.median(groups_s)

    def _group_s(self, function: Callable[[], object], calls: int) -> float:
        """Seconds per call of several calls, until the GPU has finished the last one."""
        self.wait()
        began_s = time.perf_counter()
        for _ in range(calls):
            function()
        self.wait()
        return (time.perf_counter() - began_s) / calls

    def peak_mib(self, function: Callable[[], object]) -> float | str:
        """Peak memory of the GPU during a call, everything that is allocated included."""
        if not self.on_gpu:
            return NO_GPU
        self.free()
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        self.wait()
        return round(torch.cuda.max_memory_allocated(self.device) / 2**20)

    def busy_share(self, function: Callable[[], object]) -> float | str:
        """Share of a call's time in which at least one kernel or copy ran on the GPU, by torch's profiler."""
        if not self.on_gpu:
            return NO_GPU
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        self.wait()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            began_s = time.perf_counter()
            function()
            self.wait()
            wall_us = (time.perf_counter() - began_s) * 1e6
        events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
        return round(covered([(event.time_range.start, event.time_range.end) for event in events]) / wall_us, 3)

    def synchronisations(self, function: Callable[[], object]) -> dict[str, Any] | str:
        """How often a call waits for the GPU, and where: the number of waits by file and line."""
        if not self.on_gpu:
            return NO_GPU
        before = torch.is_warn_always_enabled()
        torch.set_warn_always(True)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.set_warn_always(before)
        waits = [entry for entry in caught if "called a synchronizing" in str(entry.message)]
        places = Counter(f"{'/'.join(Path(entry.filename).parts[-2:])}:{entry.lineno}" for entry in waits)
        return {"count": len(waits), "places": dict(places.most_common())}


@contextmanager
def float32_products(products: str) -> Iterator[None]:
    """How float32 products are computed: `exact`, `tf32`, or torch's `default` (TF32 in convolutions only)."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allowed = {"exact": (False, False), "tf32": (True, True), "default": (False, True)}[products]
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class GpuUsage:
    """Share of time that the GPU is busy, sampled ten times a second by nvidia-smi: with all processes on it."""

    def __init__(self, bench: Bench) -> None:
        self._on_gpu = bench.on_gpu
        self._samples: list[tuple[float, int]] = []

    def __enter__(self) -> GpuUsage:
        if self._on_gpu:
            command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self._reader = threading.Thread(target=self._read)
            self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._process.terminate()
            self._reader.join()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self._samples.append((time.perf_counter(), int(line)))

    def share(self, begin_s: float, end_s: float) -> float | str:
        """The mean between two times (`perf_counter`)."""
        if not self._on_gpu:
            return NO_GPU
        percents = [percent for at_s, percent in self._samples if begin_s <= at_s <= end_s]
        return round(sum(percents) / len(percents) / 100, 3) if percents else "not measured: no answer of nvidia-smi"


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of spans of time, which may overlap."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


def rounded(value: float, digits: int = 4) -> float:
    """A figure to some significant digits."""
    return float(f"{value:.{digits}g}")


def relative(figures: Mapping[str, Any], plain: str) -> dict[str, float]:
    """Every number over that of `plain`."""
    base = figures.get(plain)
    if not isinstance(base, int | float) or not base:
        return {}
    return {name: rounded(value / base, 3) for name, value in figures.items() if isinstance(value, int | float)}
