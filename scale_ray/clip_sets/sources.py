"""Stored clips to training batches: where the features are meanwhile, and what each step sees of them.

    memory    all of them on the training device
    disk      mapped from a local file that the workers of a machine share
    stream    shard after shard, a shuffled window at a time

In memory and on disk an epoch's order is a shuffle of all videos, and the same for any number of workers.
Streamed, each worker reads a stretch of the shuffled shards, and shuffles what fits into a window.
The sets and masks of a video are the same in all three.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
import torch.distributed as dist
from filelock import FileLock
from torch import Tensor

from scale_ray.clip_sets.batches import Batch, Source, Videos, WorkerSlice
from scale_ray.clip_sets.draws import draw_sets, normalised_positions, shuffled, video_keys
from scale_ray.config import Ingest, Sets
from scale_ray.errors import UserError
from scale_ray.store import ClipFeatures, StoredClips

_WAYS = ("memory", "disk", "stream")
# Videos whose positions are normalised at once while features are copied to disk.
_VIDEOS_AT_ONCE = 4096

_Item = TypeVar("_Item")


class ResidentClips:
    """The clips of some videos, all at hand: `features` (videos, N, D) in memory, or mapped from disk.

    `positions` (videos, N, 7), normalised. Sets and masks are drawn on the device; only the clips that
    they hold are gathered, and cross to the device in the precision in which they are stored.
    """

    def __init__(
        self,
        video_ids: Sequence[str],
        features: Tensor,
        positions: Tensor,
        device: torch.device,
        ingest_mode: str = "memory",
    ) -> None:
        self.video_ids, self.device, self.ingest_mode = video_ids, device, ingest_mode
        self.num_videos, self.num_clips, self.feature_width = features.shape
        self.keys = video_keys(video_ids).to(device)
        self.features, self.positions = features, positions

    @classmethod
    def of(cls, clips: ClipFeatures, device: torch.device) -> ResidentClips:
        """Clips as they are stored, taken into the device's memory."""
        return cls(
            clips.video_ids,
            torch.from_numpy(clips.features).to(device),
            normalised_positions(torch.from_numpy(clips.positions)).to(device),
            device,
        )

    def batches(self, share: WorkerSlice, sets: Sets, *, seed: int, epoch: int, first_step: int) -> Iterator[Batch]:
        order = shuffled(self.num_videos, seed=seed, epoch=epoch).to(self.device)
        steps = range(first_step, self.num_videos // share.batch)
        starts = (step * share.batch + share.begin for step in steps)
        yield from one_ahead(
            self.draw(order[start : start + share.size], sets, seed=seed, epoch=epoch) for start in starts
        )

    def draw(self, rows_B: Tensor, sets: Sets, *, seed: int, epoch: int) -> Batch:
        """The sets of some videos, given as rows, int64 (B,) on the device."""
        drawn = draw_sets(self.keys[rows_B], self.num_clips, sets, seed=seed, epoch=epoch)
        where = self.features.device
        at = (torch.cat([rows_B, rows_B])[:, None].to(where), drawn.clips_SV.to(where))
        features, positions = self._moved(self.features[at]), self._moved(self.positions[at])
        return Batch(features.float(), positions, drawn.masked_SV, Videos(rows_B, self.video_ids))

    def _moved(self, values: Tensor) -> Tensor:
        if values.device == self.device:
            return values
        return values.pin_memory().to(self.device, non_blocking=True)


class Streamed:
    """Clips read shard by shard while the epoch goes on, a window ahead of the training."""

    ingest_mode = "stream"

    def __init__(self, stored: StoredClips, device: torch.device, window_bytes: int) -> None:
        self._stored, self._device, self._window_bytes = stored, device, window_bytes
        self.num_videos, self.num_clips, self.feature_width = len(stored), stored.num_clips, stored.feature_width

    def batches(self, share: WorkerSlice, sets: Sets, *, seed: int, epoch: int, first_step: int) -> Iterator[Batch]:
        steps = self.num_videos // share.batch
        # Each worker has its own stretch of the epoch's videos; what is left behind the last is the tail.
        begin = share.begin * steps
        video_bytes = self._stored.num_bytes // max(self.num_videos, 1)
        steps_of_window = max(self._window_bytes // max(share.size * video_bytes, 1), 1)
        first_window = first_step // steps_of_window

        def windows() -> Iterator[tuple[int, ResidentClips]]:
            for window in range(first_window, -(-steps // steps_of_window)):
                of_window = min(steps_of_window, steps - window * steps_of_window) * share.size
                start = begin + window * steps_of_window * share.size
                yield window, self._held(start, start + of_window, seed, epoch)

        def batches() -> Iterator[Batch]:
            for window, held in one_ahead(windows()):
                order = shuffled(held.num_videos, seed=seed, epoch=epoch, window=1 + window)
                order = order.to(self._device)
                skipped = first_step - window * steps_of_window if window == first_window else 0
                for rows in order.split(share.size)[skipped:]:
                    yield held.draw(rows, sets, seed=seed, epoch=epoch)

        yield from one_ahead(batches())

    def _held(self, begin: int, end: int, seed: int, epoch: int) -> ResidentClips:
        """Videos `begin` to `end` of the epoch's sequence: all shards in a shuffled order, one after the other."""
        read: list[ClipFeatures] = []
        start = 0
        for part in shuffled(len(self._stored.parts), seed=seed, epoch=epoch).tolist():
            length = len(self._stored.parts[part].rows)
            low, high = max(begin - start, 0), min(end - start, length)
            if low < high:
                read.append(self._stored.read_rows(part, low, high))
            start += length
        joined = ClipFeatures(
            list(itertools.chain.from_iterable(clips.video_ids for clips in read)),
            np.concatenate([clips.features for clips in read]),
            np.concatenate([clips.positions for clips in read]),
        )
        return ResidentClips.of(joined, self._device)


def opened_source(stored: StoredClips, options: Ingest, device: torch.device, workers_here: int = 1) -> Source:
    """The clips, held where there is room for them; of several workers all take the same ingest_mode.

    `workers_here` is the number of workers that share this machine's memory.

    Raises
    ------
    UserError
        Where a shard is damaged, or there is no room on the ingest_mode that was asked for.
    """
    cache = cache_of(options)
    ingest_mode = _agreed(_way(stored, options, device, workers_here, cache), device)
    if ingest_mode == "stream":
        return Streamed(stored, device, options.window_mib * 2**20)
    if ingest_mode == "disk":
        return _mapped(stored, cache, device)
    return ResidentClips.of(stored.read(), device)


def cache_of(options: Ingest) -> Path:
    """The folder for files that may be lost."""
    return Path(options.cache or tempfile.gettempdir())


def _way(stored: StoredClips, options: Ingest, device: torch.device, workers_here: int, cache: Path) -> str:
    if options.ingest != "auto":
        return options.ingest
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
    else:
        free_bytes = psutil.virtual_memory().available // workers_here
    if stored.num_bytes <= options.ingest_share * free_bytes:
        return "memory"
    cache.mkdir(parents=True, exist_ok=True)
    return "disk" if stored.num_bytes <= options.ingest_share * shutil.disk_usage(cache).free else "stream"


def _agreed(ingest_mode: str, device: torch.device) -> str:
    """The most frugal ingest_mode that any worker has to take."""
    if not dist.is_initialized():
        return ingest_mode
    number = torch.tensor(_WAYS.index(ingest_mode), device=device)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return _WAYS[int(number)]


def _mapped(stored: StoredClips, cache: Path, device: torch.device) -> ResidentClips:
    """The clips mapped from a file, which the first worker of a machine writes and all share."""
    described = json.dumps([stored.store.fingerprint, stored.mode, [part.path for part in stored.parts]])
    digest = hashlib.blake2b("\0".join([described, *stored.video_ids]).encode(), digest_size=10).hexdigest()
    folder = cache / f"scale-ray-clips-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    names = ("features.npy", "positions.npy")
    with FileLock(folder / "lock"):
        if not all((folder / name).exists() for name in names):
            _write_mapped(stored, *(folder / name for name in names))
    # Copy on write: torch wants memory that it could write to.
    features, positions = (torch.from_numpy(np.load(folder / name, mmap_mode="c")) for name in names)
    return ResidentClips(stored.video_ids, features, positions, device, "disk")


def _write_mapped(stored: StoredClips, features_path: Path, positions_path: Path) -> None:
    unfinished = [path.with_suffix(".unfinished") for path in (features_path, positions_path)]
    try:
        features = mapped_array(unfinished[0], stored.shapes[0], np.float16)
        positions = mapped_array(unfinished[1], stored.shapes[1], np.float32)
        stored.read_into(features, positions)
        for start in range(0, len(stored), _VIDEOS_AT_ONCE):
            some = positions[start : start + _VIDEOS_AT_ONCE]
            some[:] = normalised_positions(torch.from_numpy(np.array(some))).numpy()
        features.flush()
        positions.flush()
        for path, final in zip(unfinished, (features_path, positions_path), strict=True):
            os.replace(path, final)
    except OSError as error:
        raise UserError(
            f"cache: expected room for {stored.num_bytes / 2**30:.1f} GiB of features in {features_path.parent}, "
            f"found: {error.strerror or error}; give another --cache, or --ingest stream"
        ) from error
    finally:
        for path in unfinished:
            path.unlink(missing_ok=True)


def one_ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The items, each made by a thread while its forerunner is in use."""
    with ThreadPoolExecutor(1, "one-ahead") as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def mapped_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """A new array file of its full size.

    Raises
    ------
    OSError
        Where there is no room: a mapping of a file with holes would kill the process when the disk is full.
    """
    mapped = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return mapped
