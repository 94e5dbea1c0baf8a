"""Videos to stores, as one Ray Data stream.

    plan     driver           pending videos, cut into shards                 1 : N
    decode   CPU tasks        a few videos -> blocks of pixels, one by one    1 : N
    embed    backbone actors  a block of pixels -> features of every target   1 : 1
    commit   driver           features of a shard -> one Parquet part         N : 1

Features are small (16 x 768 float16 are 24 kB per video), so the driver collects them: it keeps incomplete shards
in memory and writes each shard when its last video has arrived. Shards are written atomically: after any crash,
the same command extracts the videos that are missing.
"""

from __future__ import annotations

import atexit
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError

from scale_ray.config import Cluster, Extraction, Sampling, parse_labels
from scale_ray.console import Console, Progress
from scale_ray.decoding import Decoder, video_bytes
from scale_ray.distributed.cluster import connected
from scale_ray.distributed.failures import failing_as, failure_of, is_loss
from scale_ray.distributed.resources import ClusterSize, StageSizes, stage_sizes
from scale_ray.errors import RunFailed, UserError
from scale_ray.extraction import (
    ExtractionRun,
    ExtractionSummary,
    batch_column,
    decode_videos,
    decoded_mask,
    features_column,
    pixels_of,
    read_results,
    with_columns,
    without_pixels,
)
from scale_ray.files.locations import is_uri
from scale_ray.files.module_files import ModuleFiles, import_last

# Attempts that commit nothing, after which the run ends: results did not return, or processes died again and again.
_ATTEMPTS = 3
# How often a decoding task is repeated whose process died, and how often an actor starts again. By default there is no
# limit, and a block that ends every process that works on it would never be finished. An actor's calls have none of
# their own: while Ray does not know yet that a node is dead, each of them fails at once.
_MAX_REPEATS = 4
# Blocks that may wait at an actor. Ray gives a block to an actor on the node that has decoded it if fewer wait there,
# otherwise to the least busy one. With its own number, 2, a sixth to a half of the pixels travelled between nodes when
# decoders and backbones were equally fast. It stays below an actor's part of all blocks that the memory has room for,
# so that one actor cannot hold them all.
_BLOCKS_AT_AN_ACTOR = 4
# Videos per decoding task, whatever the size of the shards: what is decoded again if a worker dies, and how evenly the
# decoders end.
_TASK_VIDEOS = 64
# Tasks per data set of Ray, which takes all of them before it begins the first one. The actors start anew for each data
# set, which costs seconds for work of an hour or more.
_TASKS_AT_ONCE = 1024


def run_stream(
    run: ExtractionRun, name: str, sampling: Sampling, extraction: Extraction, cluster: Cluster, console: Console
) -> list[ExtractionSummary]:
    """Extract the pending videos until all of their shards are committed; returns one summary per target.

    Raises
    ------
    RunFailed
        If results are still missing after several attempts.
    """
    if run.shards:
        with (
            connected(cluster, verbose=console.verbose) as size,
            console.progress(name, run.num_pending, "videos") as progress,
        ):
            failed_attempts = 0
            while before := len(run.incomplete()):
                lost = _attempt(run, sampling, extraction, size, progress)
                after = len(run.incomplete())
                failed_attempts = 0 if after < before else failed_attempts + 1
                if failed_attempts == _ATTEMPTS:
                    raise lost or RunFailed(
                        f"{after} shards are still incomplete after {_ATTEMPTS} attempts; run the command again"
                    )
                if after:
                    reason = failure_of(lost) if lost is not None else "some results did not return"
                    console.say(f"{name}: continuing with {after} incomplete shards: {reason}")
    return run.finish()


def _attempt(
    run: ExtractionRun, sampling: Sampling, extraction: Extraction, size: ClusterSize, progress: Progress
) -> RayError | None:
    """Stream the incomplete shards; returns an error of processes or nodes that died, or of objects lost with them."""
    try:
        stream_shards(run, sampling, extraction, size, progress)
    except RayError as error:
        if not is_loss(error):
            raise
        return error
    return None


def stream_shards(
    run: ExtractionRun, sampling: Sampling, extraction: Extraction, size: ClusterSize, progress: Progress
) -> None:
    """Decode and embed the videos of all incomplete shards; each shard is committed when its last video arrives."""
    numbers = run.incomplete()
    tasks_per_shard = max(-(-len(run.shards[number].video_ids) // _TASK_VIDEOS) for number in numbers)
    at_once = max(_TASKS_AT_ONCE // tasks_per_shard, 1)
    for start in range(0, len(numbers), at_once):
        _stream_some(run, numbers[start : start + at_once], sampling, extraction, size, progress)


def _stream_some(
    run: ExtractionRun,
    numbers: Sequence[int],
    sampling: Sampling,
    extraction: Extraction,
    size: ClusterSize,
    progress: Progress,
) -> None:
    sizes = stage_sizes(size, extraction)
    modes = {run.shards[number].mode for number in numbers}
    sizes_px = {mode: sorted({target.encoder.input_px_of(mode) for target in run.targets}) for mode in modes}
    bytes_per_video = max(video_bytes(mode, sampling, sizes_px[mode]) for mode in modes)
    # Large enough to amortise Ray's 30 ms per block, small enough to keep every decoder busy.
    max_videos = -(-run.num_pending // (4 * sizes.decoders))
    per_block = max(min(extraction.block_mib * 2**20 // bytes_per_video, max_videos), 1)
    buffered_blocks = 2 * sizes.decoders + extraction.blocks_ahead * sizes.actors
    at_an_actor = _BLOCKS_AT_AN_ACTOR if sizes.may_stay else None
    with _block_limits(int(0.8 * per_block * bytes_per_video), buffered_blocks * per_block * bytes_per_video):
        tasks = list(_tasks(run, numbers, per_block, max_videos))
        with warnings.catch_warnings():
            # The only way to limit repetitions, and to have GPUs, is deprecated without another one.
            warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")
            features = _pipeline(run, tasks, sampling, extraction, sizes, sizes_px, per_block, at_an_actor)
        # Without prefetching, every result is committed as soon as it arrives.
        for block in features.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for result in read_results(block):
                run.add_result(result)
                progress.advance(1)


@contextmanager
def _block_limits(target_bytes: int, buffer_bytes: int) -> Iterator[None]:
    """Set Ray Data's target size of a block, and the memory for all blocks that wait; restored at the end."""
    context = ray.data.DataContext.get_current()
    limits = context.execution_options.resource_limits
    previous = context.target_max_block_size, limits
    # Ray merges smaller blocks and splits those over 1.5 times the target, which copies them; our blocks fit.
    context.target_max_block_size = target_bytes
    # By default, Ray lets the decoders run ahead until half of the object store is full.
    context.execution_options.resource_limits = limits.copy(object_store_memory=buffer_bytes)
    try:
        yield
    finally:
        context.target_max_block_size, context.execution_options.resource_limits = previous


def _pipeline(
    run: ExtractionRun,
    tasks: list[pa.Table],
    sampling: Sampling,
    extraction: Extraction,
    sizes: StageSizes,
    sizes_px: dict[str, list[int]],
    per_block: int,
    at_an_actor: int | None,
) -> ray.data.Dataset:
    """The data set of features: decoding tasks, followed by backbone actors; None is Ray's number of waiting blocks."""
    decode = partial(decode_block, sampling=sampling, sizes_px=sizes_px, per_block=per_block, extraction=extraction)
    return (
        ray.data.from_arrow(tasks)
        .map_batches(
            decode,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            # With equal requests Ray would fuse the two stages into one, which would not overlap.
            num_cpus=sizes.decoder_cpus - 0.001,
            compute=ray.data.TaskPoolStrategy(size=sizes.decoders),
            label_selector=parse_labels(extraction.decoder_labels) or None,
            **_limited(max_retries=_MAX_REPEATS),
        )
        .map_batches(
            EmbedBlock,
            fn_constructor_args=(
                [ray.put(target.encoder) for target in run.targets],
                [files for target in run.targets if (files := target.encoder.module_files) is not None],
                [shard.targets for shard in run.shards],
                sampling,
                extraction.batch_clips,
                sizes.actor_threads,
            ),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=sizes.actors, max_tasks_in_flight_per_actor=at_an_actor),
            label_selector=parse_labels(extraction.actor_labels) or None,
            num_cpus=sizes.actor_resources["num_cpus"],
            **_limited(max_restarts=_MAX_REPEATS, max_task_retries=-1, **sizes.actor_resources),
        )
    )


def _limited(**options: float) -> dict[str, Any]:
    """Options of Ray for each worker, as a keyword of `map_batches`: limits of repetitions and GPUs.

    With `num_gpus` itself, `map_batches` demands a number of rows per batch, and would join and cut our blocks for it.
    """
    known = inspect.signature(ray.data.Dataset.map_batches).parameters
    if "ray_remote_args_fn" in known:
        return {"ray_remote_args_fn": partial(dict, **options)}
    return {name: value for name, value in options.items() if name in known}


def _tasks(run: ExtractionRun, numbers: Sequence[int], per_block: int, max_videos: int) -> Iterator[pa.Table]:
    """The videos of one decoding task per table: of one shard, few enough, and rounded up to whole blocks."""
    for number in numbers:
        shard = run.shards[number]
        step = -(-min(max_videos, _TASK_VIDEOS, len(shard.video_ids)) // per_block) * per_block
        for start in range(0, len(shard.video_ids), step):
            ids = shard.video_ids[start : start + step]
            start_s, end_s = zip(*shard.segments[start : start + step], strict=True)
            paths = [run.opened_at(path) for path in shard.paths[start : start + step]]
            yield pa.table(
                {
                    "video_id": ids,
                    "path": paths,
                    "folder": pa.array([_folder_here(paths[0])] * len(ids), pa.string()),
                    "start_s": pa.array(start_s, pa.float64()),
                    "end_s": pa.array(end_s, pa.float64()),
                    "mode": [shard.mode] * len(ids),
                    "shard": [number] * len(ids),
                }
            )


def _folder_here(path: str) -> str | None:
    """The folder of a local file, if this machine has it."""
    folder = os.path.dirname(path)
    return folder if not is_uri(path) and os.path.isdir(folder) else None


def _check_folder(folder: str | None) -> None:
    """Refuse a node that lacks a folder of the command's machine: each of its videos would fail.

    Raises
    ------
    UserError
        If this machine does not have the folder.
    """
    if folder is not None and not os.path.isdir(folder):
        raise UserError(
            f"expected the folder {folder} of the videos, which the machine of the command has, found none: put the "
            "videos on a disk that all nodes share or at a URI, or choose other nodes with --decoder-labels"
        )


# One per worker process, kept from task to task.
_decoder: Decoder | None = None


def decode_block(
    block: pa.Table,
    *,
    sampling: Sampling,
    sizes_px: Mapping[str, Sequence[int]],
    per_block: int,
    extraction: Extraction,
) -> Iterator[pa.Table]:
    """Decode videos of one mode to blocks of pixels; a video that fails becomes a row with the reason, without pixels.

    `sizes_px` are the input sizes per mode. All blocks have the same columns: those of other modes' sizes are null.
    """
    global _decoder
    if _decoder is None:
        _decoder = Decoder(timeout_s=extraction.decode_timeout_s, memory_gib=extraction.decode_memory_gib)
        atexit.register(_decoder.close)
    with failing_as("decoding"):
        _check_folder(block["folder"][0].as_py())
        input_sizes_px = sizes_px[block["mode"][0].as_py()]
        for decoded in decode_videos(block.to_pylist(), _decoder, sampling, input_sizes_px, per_block):
            yield with_columns(decoded, sorted(set().union(*sizes_px.values())))


class EmbedBlock:
    """An actor with the frozen backbones; batches of clips may span several videos of a block.

    What goes wrong in the constructor is raised by the first call: Ray prints it with tracebacks of its own otherwise,
    and starts the actor again.
    """

    def __init__(
        self,
        encoders: list[ray.ObjectRef],
        modules: list[ModuleFiles],
        targets_of_shards: list[tuple[int, ...]],
        sampling: Sampling,
        batch_clips: int,
        cpu_threads: int,
    ) -> None:
        self._failure: Exception | None = None
        self._targets_of_shards, self._sampling, self._batch_clips = targets_of_shards, sampling, batch_clips
        try:
            with failing_as("backbone"):
                self._load(encoders, modules, cpu_threads)
        except (UserError, RunFailed) as error:
            self._failure = error

    def _load(self, encoders: list[ray.ObjectRef], modules: list[ModuleFiles], cpu_threads: int) -> None:
        # Imported here, since decoding tasks import this module and need no torch (4 s and 500 MB per process).
        import torch

        from scale_ray.backbones import FeatureExtractor, devices_here

        devices = devices_here()
        if devices[0].type == "cpu":
            torch.set_num_threads(cpu_threads)
        import_last(modules)  # a custom backbone's class is in its module
        self._extractors = [FeatureExtractor(encoder, devices, self._batch_clips) for encoder in ray.get(encoders)]

    def __call__(self, block: pa.Table) -> pa.Table:
        if self._failure is not None:
            raise self._failure
        with failing_as("backbone"):
            return self._embedded(block)

    def _embedded(self, block: pa.Table) -> pa.Table:
        wanted = {target for shard in set(block["shard"].to_pylist()) for target in self._targets_of_shards[shard]}
        decoded, mode = decoded_mask(block), block["mode"][0].as_py()
        columns: dict[str, pa.Array] = {}
        for number, extractor in enumerate(self._extractors):
            values: Iterator[bytes] = iter(())
            if number in wanted and decoded.any():
                clips = pixels_of(block, self._sampling, extractor.input_px_of(mode))
                features = extractor(clips).reshape(int(decoded.sum()), -1)
                values = (row.tobytes() for row in features)
            filled = [next(values, None) if is_decoded else None for is_decoded in decoded]
            columns[features_column(number)] = pa.array(filled, pa.binary())
            columns[batch_column(number)] = pa.array([extractor.batch_clips] * len(decoded), pa.int64())
        kept = without_pixels(block)
        return pa.table({**{name: kept[name] for name in kept.column_names}, **columns})
