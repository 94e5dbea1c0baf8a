"""Videos to store, as one Ray Data stream.

    plan     driver           pending videos, cut into shards            1 : N
    decode   CPU tasks        video -> clips, several videos a block     1 : 1
    embed    backbone actors  clips -> features, a whole block at once   1 : 1
    commit   driver           features of a shard -> one Parquet part    N : 1

Features are small (16 x 768 float16 are 24 kB a video), so the driver gathers them: it holds the shards
that are under way and writes each one when its last video has come. Whatever dies, a shard is there
whole or not at all, and the same command does what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray
import ray.data

from scale_ray.clips import MODES, VideoGeometry
from scale_ray.config import BackboneOptions, Cluster, Extraction, Sampling
from scale_ray.corpus import Corpus, read_corpus
from scale_ray.decoding import decode_clips
from scale_ray.distributed.cluster import Size, connected
from scale_ray.errors import UserError, VideoError
from scale_ray.locations import filesystem_of, is_uri
from scale_ray.progress import Progress
from scale_ray.store import GEOMETRY, Failure, FeatureStore, VideoFeatures, fingerprint_of

if TYPE_CHECKING:  # the decoding tasks import this module, and do without torch: 4 s and 500 MB each
    from scale_ray.backbones import Backbone

# A block on its way to the backbone: large enough that Ray's cost of a block (some 30 ms) is small.
_BLOCK_BYTES = 48 * 2**20

_CLIPS = pa.schema(
    [
        ("video_id", pa.string()),
        ("mode", pa.string()),
        ("shard", pa.int64()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("exception", pa.string()),
        ("pixels", pa.large_binary()),
        ("positions", pa.binary()),
        *GEOMETRY,
    ]
)


@dataclass(frozen=True)
class Shard:
    """Videos that are committed together: ids in order, with their paths and earlier failed attempts."""

    mode: str
    video_ids: list[str]
    paths: list[str]
    attempts: list[int]


@dataclass(frozen=True)
class ExtractionSummary:
    """What a run found and did: `num_done` + `len(failures)` = `num_videos`."""

    num_videos: int
    num_done: int
    num_extracted: int
    failures: list[Failure]
    num_corrected: bool
    store: str

    @property
    def failed_share(self) -> float:
        return len({failure.video_id for failure in self.failures}) / self.num_videos

    def lines(self) -> list[str]:
        if self.num_extracted == 0 and not self.num_corrected:
            began = "everything was done already"
        elif self.num_extracted == 0:
            began = "everything was extracted already; labels, splits and columns were brought up to date"
        else:
            began = f"{self.num_extracted} videos extracted now"
        failed = [f"  failed: {entry.video_id} ({entry.stage}: {entry.reason})" for entry in self.failures]
        return [
            f"{self.num_done} of {self.num_videos} videos are in {self.store}; {began}",
            *([f"{len(failed)} of {self.num_videos} videos failed:"] if failed else []),
            *failed,
        ]


def extract(
    videos: str,
    store: str,
    *,
    sampling: Sampling,
    backbone: BackboneOptions,
    extraction: Extraction,
    cluster: Cluster,
    say: Callable[[str], None],
    quiet: bool = False,
    verbose: bool = False,
) -> ExtractionSummary:
    """Extract the clips' features of every video that the store does not hold yet.

    Raises
    ------
    UserError
        Before anything is written, where the videos, the backbone or the store cannot be used.
    """
    from scale_ray.backbones import load_backbone

    corpus = read_corpus(videos, leave_out=store)
    say(f"{len(corpus.videos)} files in {videos} ({corpus.split_note})")
    encoder = load_backbone(backbone, sampling.frames)
    features_store = FeatureStore.create(store, fingerprint_of(encoder.identity(), sampling))
    _refuse_changed_videos(features_store, corpus)
    # Before anything is read, so that a store whose run dies knows its videos; again at the end, when
    # their sizes and lengths are known.
    corrected = features_store.replace_videos(corpus.videos)
    shards, failed_before = plan_shards(corpus, features_store, extraction)
    num_pending = sum(len(shard.video_ids) for shard in shards)
    if shards:
        with (
            connected(cluster, verbose=verbose) as size,
            Progress("extract", num_pending, "videos", quiet=quiet) as progress,
        ):
            _run_stream(shards, features_store, encoder, sampling, extraction, size, progress)
        features_store.replace_videos(corpus.videos)
    wanted = set(corpus.videos["video_id"].to_pylist())
    failures = [entry for entry in features_store.failures() if entry.video_id in wanted]
    num_failed = len({entry.video_id for entry in failures})
    return ExtractionSummary(
        num_videos=len(corpus.videos),
        num_done=len(corpus.videos) - num_failed,
        num_extracted=num_pending - sum(entry.video_id not in failed_before for entry in failures),
        failures=failures,
        num_corrected=corrected,
        store=store,
    )


def plan_shards(corpus: Corpus, store: FeatureStore, extraction: Extraction) -> tuple[list[Shard], set[str]]:
    """The pending videos in the order of their ids, cut into shards; and the ids left as failed before."""
    failed = {(entry.video_id, entry.mode): entry.attempts for entry in store.failures()}
    shards: list[Shard] = []
    left_failed: set[str] = set()
    ids, paths, splits = (corpus.videos[name].to_pylist() for name in ("video_id", "path", "split"))
    for mode in MODES:
        done = store.done(mode)
        pending: list[tuple[str, str, int]] = []
        for video_id, path, split in zip(ids, paths, splits, strict=True):
            if mode != mode_of(split, extraction.mode) or video_id in done:
                continue
            attempts = failed.get((video_id, mode), 0)
            if attempts and not extraction.retry_failed:
                left_failed.add(video_id)
                continue
            pending.append((video_id, path, attempts))
        for start in range(0, len(pending), extraction.shard_videos):
            part = pending[start : start + extraction.shard_videos]
            shards.append(Shard(mode, *(list(column) for column in zip(*part, strict=True))))
    return shards, left_failed


def mode_of(split: str, mode: str) -> str:
    """Which clips a video of this split gets: test videos are seen through `eval` clips alone."""
    if mode == "auto":
        return "eval" if split == "test" else "train"
    return mode


def _refuse_changed_videos(store: FeatureStore, corpus: Corpus) -> None:
    known = {mode: store.done(mode) for mode in MODES}
    if not any(known.values()):
        return
    before = {row["video_id"]: row for row in store.videos().select(["video_id", "path", "size_bytes"]).to_pylist()}
    for row in corpus.videos.select(["video_id", "path", "size_bytes"]).to_pylist():
        stored = before.get(row["video_id"])
        if stored is None or not any(row["video_id"] in ids for ids in known.values()):
            continue
        for name in ("path", "size_bytes"):
            if stored[name] != row[name]:
                raise UserError(
                    f"{row['video_id']}: expected the video that the store holds under this id ({name} "
                    f"{stored[name]}), found {row[name]}; use another --store"
                )


def _run_stream(
    shards: list[Shard],
    store: FeatureStore,
    encoder: Backbone,
    sampling: Sampling,
    extraction: Extraction,
    size: Size,
    progress: Progress,
) -> None:
    actors, actor_options, decoders, decoder_cpus = _sizes(size, extraction)
    encoder_ref = ray.put(encoder)
    stream = (
        ray.data.from_arrow(list(_blocks(shards, sampling, encoder.input_px)))
        .map_batches(
            partial(decode_block, sampling=sampling, side_px=encoder.input_px),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            # Equal requests of both stages would make Ray fuse them into one: no overlap then.
            num_cpus=decoder_cpus - 0.001,
            compute=ray.data.TaskPoolStrategy(size=decoders),
        )
        .map_batches(
            EmbedBlock,
            fn_constructor_args=([encoder_ref], sampling, extraction.batch_clips, min(size.cpus, 2)),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=actors),
            **actor_options,
        )
    )
    arrived: dict[int, dict[str, VideoFeatures | Failure]] = {}
    count = 0
    for block in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in block.to_pylist():
            shard = shards[row["shard"]]
            arrived.setdefault(row["shard"], {})[row["video_id"]] = _result(row, shard, sampling)
            count += 1
            if len(arrived[row["shard"]]) == len(shard.video_ids):
                _commit(store, shard, arrived.pop(row["shard"]))
        progress.to(count)
    assert not arrived, f"{len(arrived)} shards are incomplete after the stream ended"


def _sizes(size: Size, extraction: Extraction) -> tuple[int, dict[str, float], int, float]:
    """Actors and their resources, decoding tasks and their CPUs: all must fit at the same time."""
    if size.gpus:
        actors = extraction.actors or size.gpus
        decoders = extraction.decoders or max(size.cpus - 1, 1)
        return actors, {"num_gpus": size.gpus / actors}, decoders, min(size.cpus / decoders, 1.0) / 2
    # A backbone on CPUs uses 2 threads an actor; on one core both stages share it.
    actors = extraction.actors or max(size.cpus // 2, 1)
    decoders = extraction.decoders or max(size.cpus - actors, 1)
    # Half of what there is: Ray Data holds a part of the CPUs back for each stage, and on two cores whole
    # ones were seen to leave nothing for the decoders, for ever.
    share = min(size.cpus / (actors + decoders), 1.0) / 2
    return actors, {"num_cpus": share}, decoders, share


def _blocks(shards: list[Shard], sampling: Sampling, side_px: int) -> Iterator[pa.Table]:
    for number, shard in enumerate(shards):
        video_bytes = sampling.num_clips(shard.mode) * sampling.frames * side_px**2 * 3
        step = max(_BLOCK_BYTES // video_bytes, 1)
        for start in range(0, len(shard.video_ids), step):
            ids = shard.video_ids[start : start + step]
            yield pa.table(
                {
                    "video_id": ids,
                    "path": shard.paths[start : start + step],
                    "mode": [shard.mode] * len(ids),
                    "shard": [number] * len(ids),
                }
            )


def decode_block(block: pa.Table, *, sampling: Sampling, side_px: int) -> pa.Table:
    """Videos to clips; a video that cannot be used becomes a row with its reason and no pixels."""
    rows = []
    for row in block.to_pylist():
        out = {"video_id": row["video_id"], "mode": row["mode"], "shard": row["shard"]}
        try:
            clips = decode_clips(_source(row["path"]), row["video_id"], row["mode"], sampling, side_px)
            out |= {"pixels": clips.pixels.tobytes(), "positions": clips.positions.tobytes(), **vars(clips.geometry)}
        except VideoError as error:
            out |= {"stage": error.stage, "reason": error.reason, "exception": repr(error.__cause__ or error)}
        except Exception as error:  # noqa: BLE001 - one video among a million never ends the run
            out |= {"stage": "decode", "reason": f"{type(error).__name__}: {error}", "exception": repr(error)}
        rows.append(out)
    return pa.Table.from_pylist(rows, schema=_CLIPS)


def _source(path: str) -> str | Callable[[], pa.NativeFile]:
    if not is_uri(path):
        return os.fspath(path)
    filesystem, inner = filesystem_of(path)
    return lambda: filesystem.open_input_file(inner)


class EmbedBlock:
    """The frozen backbone in an actor: a block's clips in batches, wherever its videos end."""

    def __init__(self, encoder: list[ray.ObjectRef], sampling: Sampling, batch_clips: int, cpu_threads: int) -> None:
        import torch

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(cpu_threads)
        self._encoder = ray.get(encoder[0]).to(self._device)
        self._sampling, self._batch_clips = sampling, batch_clips

    def __call__(self, block: pa.Table) -> pa.Table:
        side_px, frames = self._encoder.input_px, self._sampling.frames
        pixels = [
            np.frombuffer(value.as_buffer(), np.uint8).reshape(-1, frames, side_px, side_px, 3)
            for value in block["pixels"]
            if value.is_valid
        ]
        features = iter(self._features(pixels))
        columns = [next(features).tobytes() if value.is_valid else None for value in block["pixels"]]
        return block.drop_columns(["pixels"]).append_column("features", pa.array(columns, pa.binary()))

    def _features(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
        import torch

        if not pixels:
            return []
        together = np.concatenate(pixels)
        outputs = [
            self._encoder(torch.from_numpy(together[start : start + self._batch_clips]).to(self._device)).cpu()
            for start in range(0, len(together), self._batch_clips)
        ]
        ends = np.cumsum([len(clips) for clips in pixels])[:-1]
        return np.split(torch.cat(outputs).to(torch.float16).numpy(), ends)


def _result(row: dict, shard: Shard, sampling: Sampling) -> VideoFeatures | Failure:
    if row["features"] is None:
        reason = (row["stage"], row["reason"], row["exception"])
    else:
        features = np.frombuffer(row["features"], np.float16).reshape(sampling.num_clips(row["mode"]), -1)
        if np.isfinite(features).all():
            positions = np.frombuffer(row["positions"], np.float32).reshape(len(features), -1)
            geometry = VideoGeometry(row["height_px"], row["width_px"], row["duration_s"], row["fps"])
            return VideoFeatures(row["video_id"], features, positions, geometry)
        reason = ("backbone", "a feature is not finite or beyond what float16 holds (65504)", "")
    index = shard.video_ids.index(row["video_id"])
    return Failure(row["video_id"], row["mode"], shard.paths[index], *reason, attempts=shard.attempts[index] + 1)


def _commit(store: FeatureStore, shard: Shard, results: dict[str, VideoFeatures | Failure]) -> None:
    """Failures first: once the part is there, its shard is never planned again."""
    in_order = [results[video_id] for video_id in shard.video_ids]
    store.enter_failures([result for result in in_order if isinstance(result, Failure)])
    videos = [result for result in in_order if isinstance(result, VideoFeatures)]
    if videos:
        store.commit(store.part_name(shard.mode, shard.video_ids), shard.mode, videos)
