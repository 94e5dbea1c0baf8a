"""Videos to feature stores."""

from __future__ import annotations

from scale_ray.config import ExtractConfig
from scale_ray.console import Console
from scale_ray.corpus import read_corpus
from scale_ray.distributed.stream import run_stream
from scale_ray.extraction import ExtractionResult, ExtractionRun, open_targets


def extract(videos: str, store: str, *, config: ExtractConfig, console: Console) -> ExtractionResult:
    """Extract the clip features of every video that a store does not hold yet, for one or several backbones.

    With `part`, of the videos of one part of the corpus: several processes fill one store, each with its own part.

    Parameters
    ----------
    videos
        A folder, a quoted glob or a manifest (`corpus.read_corpus`).
    store
        The folder or URI of the store; with several backbones, of the folder with a store for each.

    Raises
    ------
    UserError
        Before anything is written, if the videos, a backbone or a store cannot be used.
    RunFailed
        If results did not come back from the cluster.
    """
    corpus = read_corpus(videos, config.corpus, excluded_folder=store)
    console.say(f"{len(corpus.videos)} files in {videos} ({corpus.split_note})")
    for line in corpus.notes:
        console.say(line)
    part = config.extraction.corpus_part
    with open_targets(store, config.backbone, config.sampling, console, part) as targets:
        run = ExtractionRun(corpus, targets, config.extraction)
        if part is not None:
            console.say(f"part {part}: {run.num_videos} of {len(corpus.videos)} videos")
        summaries = run_stream(run, "extract", config.sampling, config.extraction, config.cluster, console)
    return ExtractionResult(summaries)
