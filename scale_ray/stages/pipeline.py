"""Videos to a table: extract, pretrain and probe, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scale_ray.config import ExtractConfig, PipelineConfig, PretrainConfig, ProbeConfig
from scale_ray.console import Console, Result
from scale_ray.distributed.cluster import connected
from scale_ray.errors import RunFailed, UserError
from scale_ray.files.locations import join
from scale_ray.stages.extract import extract
from scale_ray.stages.pretrain import PretrainResult, pretrain
from scale_ray.stages.probe import ProbeResult, probe

if TYPE_CHECKING:
    import pandas as pd

_STAGES = 3


@dataclass(frozen=True)
class PipelineResult(Result):
    """The table of the probes, the run, and the seconds that each stage took."""

    run: PretrainResult
    probes: ProbeResult
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def picture(self) -> str:
        """The picture of the results."""
        return join(self.run.folder.location, "probe", "results.png")

    def lines(self) -> list[str]:
        return [
            "",
            *self.probes.tables[0].lines(),
            "",
            "took " + ", ".join(f"{name} {value} s" for name, value in self.seconds.items()),
            f"picture: {self.picture}",
        ]

    def values(self) -> dict[str, Any]:
        return {
            "table": self.probes.tables[0].values(),
            "seconds": self.seconds,
            "picture": self.picture,
            "aggregator": self.run.aggregator,
        }

    def to_pandas(self) -> pd.DataFrame:
        """The table of the probes: a row per representation and metric."""
        return self.probes.to_pandas()

    def pictures(self) -> list[bytes]:
        return self.probes.pictures()


def pipeline(
    videos: str, store: str, run: str, *, runs: str = "runs", config: PipelineConfig, console: Console
) -> PipelineResult:
    """Run `extract`, `pretrain` and `probe` on one Ray.

    Raises
    ------
    UserError
        If the videos, the store or the options cannot be used.
    RunFailed
        If a stage could not be finished, or a larger fraction of the videos failed than `max_failed_share`.
    """
    if len(config.backbone.each()) > 1:
        raise UserError(f"backbone: expected one for a pipeline, found {config.backbone.backbone}")
    config.extraction.check_whole("a pipeline")
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started_s = time.monotonic()
        console.say("")
        console.say(f"[{len(seconds) + 1}/{_STAGES}] {name}")
        yield
        seconds[name] = round(time.monotonic() - started_s, 1)

    with connected(config.cluster, verbose=console.verbose):
        with timed("extract"):
            for mode in _modes(config):
                extraction = config.part(ExtractConfig).replaced(mode=mode)
                extracted = extract(videos, store, config=extraction, console=console)
                for line in extracted.lines():
                    console.say(line)
                _check_failures(extracted.failed_fraction, config.extraction.max_failed_share)
        with timed("pretrain"):
            trained = pretrain(store, run, runs=runs, config=config.part(PretrainConfig), console=console)
        with timed("probe"):
            probes = probe(store, run, runs=runs, config=config.part(ProbeConfig), console=console)
    return PipelineResult(trained, probes, seconds)


def _modes(config: PipelineConfig) -> list[str]:
    """The modes to extract: `auto` gives no augmented clips, which the other stages may ask for."""
    asked = config.training.pretrain_mode + config.probing.probe_mode
    mode = config.extraction.mode
    return [mode, "augmented"] if mode == "auto" and "augmented" in asked else [mode]


def _check_failures(failed: float, allowed: float) -> None:
    if failed > allowed:
        raise RunFailed(f"{failed:.1%} of the videos failed, more than --max-failed-share {allowed:.1%}")
