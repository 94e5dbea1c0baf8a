"""Videos to what they are and what their extraction will cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from scale_ray.config import Extraction, InspectConfig
from scale_ray.console import Console, Result
from scale_ray.corpus import Corpus, read_corpus
from scale_ray.distributed.resources import ClusterSize, stage_sizes
from scale_ray.inspection import (
    CorpusFacts,
    CostEstimate,
    Header,
    Machine,
    Sample,
    available_cores,
    available_gpus,
    estimate,
    facts_of_corpus,
    measure_sample,
    read_headers,
    select_videos,
    spread_sample,
    videos_by_mode,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class InspectResult(Result):
    """What the files of a corpus are; if some were decoded, what was measured, and the cost of an extraction."""

    corpus: CorpusFacts
    sample: Sample | None = None
    estimate: CostEstimate | None = None

    @property
    def num_unreadable(self) -> int:
        """Files that could not be opened or decoded, among those that were tried."""
        return len(self.corpus.unreadable) + (len(self.sample.unreadable) if self.sample else 0)

    def lines(self) -> list[str]:
        lines = self.corpus.lines()
        if self.sample is not None:
            lines += self.sample.lines()
            lines += self.estimate.lines() if self.estimate else ["  no estimate: too few of them could be decoded"]
        return lines

    def values(self) -> dict[str, Any]:
        return {
            "corpus": asdict(self.corpus),
            "sample": asdict(self.sample) if self.sample else None,
            "estimate": asdict(self.estimate) if self.estimate else None,
        }

    def to_pandas(self) -> pd.DataFrame:
        """One row: the numbers of the corpus."""
        import pandas as pd

        plain = (int, float, str)
        return pd.DataFrame([{k: v for k, v in vars(self.corpus).items() if isinstance(v, plain)}])


def inspect(videos: str, *, config: InspectConfig, console: Console) -> InspectResult:
    """Open the files of a corpus, decode a sample of them and time the backbones; nothing is written.

    Raises
    ------
    UserError
        If there are no videos, or a backbone cannot be loaded.
    """
    config.extraction.check_whole("an inspection")
    corpus, inspection = read_corpus(videos, config.corpus), config.inspection
    for line in corpus.notes:
        console.say(line)
    rows = select_videos(corpus, inspection.inspect_headers, inspection.inspect_seed)
    corpus.check_reachable(row["path"] for row in rows)
    headers, unreadable = read_headers(rows, config.extraction, console)
    facts = facts_of_corpus(corpus, headers, unreadable)
    if not headers or not inspection.inspect_sample:
        return InspectResult(facts)
    return _with_estimate(corpus, facts, {row["video_id"]: row for row in rows}, headers, config, console)


def _with_estimate(
    corpus: Corpus,
    facts: CorpusFacts,
    rows: dict[str, dict[str, Any]],
    headers: list[Header],
    config: InspectConfig,
    console: Console,
) -> InspectResult:
    inspection, extraction = config.inspection, config.extraction
    splits = [dict(rows[header.video_id]["splits"]) for header in headers]
    has_several_splits = len(corpus.split_names) > 1
    num_videos = videos_by_mode(splits, extraction.mode, has_several_splits=has_several_splits, scale=facts.scale)
    machine = _this_machine(extraction)
    drawn = spread_sample(headers, inspection.inspect_sample, inspection.inspect_seed)
    paths = [(header, rows[header.video_id]["path"]) for header in drawn]
    sample = measure_sample(paths, list(num_videos), machine, config, console)
    expected = estimate(
        num_videos,
        sample.decoding,
        sample.backbones,
        machine,
        config.sampling,
        extraction.videos_per_shard(len(corpus.videos)),
    )
    return InspectResult(facts, sample, expected)


def _this_machine(extraction: Extraction) -> Machine:
    """What a local Ray would run here, by the same rule as the stream."""
    size = ClusterSize(available_cores(), available_gpus())
    sizes = stage_sizes(size, replace(extraction, decoder_labels=None, actor_labels=None))
    if size.gpus:
        devices = min(round(sizes.actors * sizes.actor_resources["num_gpus"]), size.gpus)
        return Machine(size.cpus, sizes.decoders, max(devices, 1), "cuda", sizes.actor_threads)
    return Machine(size.cpus, sizes.decoders, sizes.actors, "cpu", sizes.actor_threads)
