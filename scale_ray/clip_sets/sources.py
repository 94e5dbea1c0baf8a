"""Stored clips to training batches. The ingest mode decides where the features are kept during training:

    memory    in the memory of the training device
    disk      in a memory-mapped local file that the workers of a machine share
    stream    in the store; shards are read one after the other, a shuffled window at a time

With `memory` and `disk` the order of an epoch is a shuffle of all videos, the same for any number of workers.
With `stream` each worker reads one stretch of the shuffled shards and shuffles the videos within a window.
The sets and masks of a video are the same in all three modes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
import torch.distributed as dist
from filelock import FileLock
from torch import Tensor

from scale_ray.aggregator import normalised_positions
from scale_ray.clip_sets.batches import Batch, Source, Videos, WorkerSlice
from scale_ray.clip_sets.draws import (
    draw_sets,
    order_of_epoch,
    shuffled,
    used_of_shard,
    varied_positions,
    video_keys,
)
from scale_ray.config import Ingest, Sets
from scale_ray.errors import UserError
from scale_ray.files.locations import private_folder
from scale_ray.store import ClipFeatures, StoredClips

# Ordered by memory use, highest first.
_INGEST_MODES = ("memory", "disk", "stream")
# Positions are normalised in chunks of this many videos while features are copied to disk.
_VIDEOS_PER_CHUNK = 4096

_Item = TypeVar("_Item")


class ResidentClips:
    """Clips in memory, or mapped from disk: any video can be drawn at any time.

    `features` (videos, N, D); `positions` (videos, N, 7), normalised. Sets and masks are drawn on `device`;
    only the drawn clips are gathered and copied to it, in the precision in which they are stored. With `groups`, the
    group of each video by its id, batches say which videos belong together. With `blocks` an epoch uses a fraction of
    the videos (`StoredClips.blocks`).
    """

    def __init__(
        self,
        video_ids: Sequence[str],
        features: Tensor,
        positions: Tensor,
        device: torch.device,
        ingest_mode: str = "memory",
        rows: Tensor | None = None,
        groups: Mapping[str, str] | None = None,
        blocks: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.video_ids, self.device, self.ingest_mode, self._groups = video_ids, device, ingest_mode, groups
        self._blocks = blocks or [(len(video_ids), len(video_ids))]
        self.num_videos = sum(num_used for _, num_used in self._blocks)
        _, self.num_clips, self.feature_width = features.shape
        self.keys = video_keys(video_ids).to(device)
        self._owners = None
        if groups is not None:
            self._owners = torch.stack([video_keys([groups[i] for i in video_ids]).to(device), self.keys], 1)
        self.features, self.positions = features, positions
        # Of a subset, where its videos are among the features.
        self._rows = (torch.arange(len(video_ids)) if rows is None else rows).to(features.device)

    @classmethod
    def from_clips(
        cls,
        clips: ClipFeatures,
        device: torch.device,
        groups: Mapping[str, str] | None = None,
        blocks: Sequence[tuple[int, int]] | None = None,
    ) -> ResidentClips:
        """Stored clips, copied to the memory of the device."""
        return cls(
            clips.video_ids,
            torch.from_numpy(clips.features).to(device),
            normalised_positions(torch.from_numpy(clips.positions)).to(device),
            device,
            groups=groups,
            blocks=blocks,
        )

    def subset(self, rows: Tensor) -> ResidentClips:
        """Some of the videos, int64 rows; the features are shared, not copied. Sets and masks are as in all videos."""
        ids = [self.video_ids[row] for row in rows.tolist()]
        return ResidentClips(
            ids, self.features, self.positions, self.device, self.ingest_mode, self._rows[rows], self._groups
        )

    def on(self, device: torch.device, *, copied: bool) -> ResidentClips:
        """The same videos for training on another device; with `copied` the features are in its memory."""
        if device == self.device:
            return self
        features, positions, mode = self.features, self.positions, self.ingest_mode
        if copied:
            features, positions, mode = features.to(device), positions.to(device), "memory"
        return ResidentClips(self.video_ids, features, positions, device, mode, self._rows, self._groups, self._blocks)

    def batches(
        self, worker_slice: WorkerSlice, sets: Sets, *, seed: int, epoch: int, first_step: int
    ) -> Iterator[Batch]:
        """See `Source.batches`; the order of the epoch is a shuffle of all its videos."""
        order = order_of_epoch(self._blocks, seed=seed, epoch=epoch).to(self.device)
        steps = range(first_step, self.num_videos // worker_slice.batch_size)
        starts = (step * worker_slice.batch_size + worker_slice.begin for step in steps)
        yield from prefetched(
            self.draw(order[start : start + worker_slice.size], sets, seed=seed, epoch=epoch) for start in starts
        )

    def draw(self, rows_B: Tensor, sets: Sets, *, seed: int, epoch: int) -> Batch:
        """Draw the two sets of each of these videos, given as rows, int64 (B,) on the device."""
        keys = self.keys[rows_B]
        drawn = draw_sets(keys, self.num_clips, sets, seed=seed, epoch=epoch)
        storage = self.features.device
        stored_rows = self._rows[rows_B.to(storage)]
        index = (torch.cat([stored_rows, stored_rows])[:, None], drawn.clips_SV.to(storage))
        features, positions = self._to_device(self.features[index]), self._to_device(self.positions[index])
        positions = varied_positions(positions, keys, self.num_clips, sets, seed=seed, epoch=epoch)
        owners = None if self._owners is None else self._owners[rows_B]
        return Batch(features.float(), positions, drawn.masked_SV, Videos(rows_B, self.video_ids), owners)

    def _to_device(self, values: Tensor) -> Tensor:
        if values.device == self.device:
            return values
        return values.pin_memory().to(self.device, non_blocking=True)


class StreamedClips:
    """Clips that are read from the store shard by shard during the epoch, one window ahead of the training."""

    ingest_mode = "stream"

    def __init__(
        self, stored: StoredClips, device: torch.device, window_bytes: int, groups: Mapping[str, str] | None = None
    ) -> None:
        self._stored, self._device, self._window_bytes, self._groups = stored, device, window_bytes, groups
        self.num_clips, self.feature_width = stored.num_clips, stored.feature_width
        self.num_videos = sum(num_used for _, num_used in stored.blocks)

    def batches(
        self, worker_slice: WorkerSlice, sets: Sets, *, seed: int, epoch: int, first_step: int
    ) -> Iterator[Batch]:
        """See `Source.batches`; videos are shuffled within windows."""
        num_steps = self.num_videos // worker_slice.batch_size
        # Each worker reads its own stretch of the epoch's videos; those behind the last stretch are left out.
        begin = worker_slice.begin * num_steps
        video_bytes = self._stored.num_bytes // max(len(self._stored), 1)
        steps_per_window = max(self._window_bytes // max(worker_slice.size * video_bytes, 1), 1)
        first_window = first_step // steps_per_window

        def windows() -> Iterator[tuple[int, ResidentClips]]:
            for window in range(first_window, -(-num_steps // steps_per_window)):
                num_videos = min(steps_per_window, num_steps - window * steps_per_window) * worker_slice.size
                start = begin + window * steps_per_window * worker_slice.size
                yield window, self._read_window(start, start + num_videos, seed, epoch)

        def batches() -> Iterator[Batch]:
            for window, clips in prefetched(windows()):
                order = shuffled(clips.num_videos, seed=seed, epoch=epoch, window=1 + window)
                order = order.to(self._device)
                num_skipped = first_step - window * steps_per_window if window == first_window else 0
                for rows_B in order.split(worker_slice.size)[num_skipped:]:
                    yield clips.draw(rows_B, sets, seed=seed, epoch=epoch)

        yield from prefetched(batches())

    def _read_window(self, begin: int, end: int, seed: int, epoch: int) -> ResidentClips:
        """Videos `begin` to `end` of the epoch's sequence, which is all shards in a shuffled order."""
        pieces: list[ClipFeatures] = []
        start = 0
        for part, length in self._shards_of_epoch(seed, epoch):
            first_row, end_row = max(begin - start, 0), min(end - start, length)
            if first_row < end_row:
                pieces.append(self._read_part(part, length, slice(first_row, end_row), seed, epoch))
            start += length
        joined = ClipFeatures(
            list(itertools.chain.from_iterable(piece.video_ids for piece in pieces)),
            np.concatenate([piece.features for piece in pieces]),
            np.concatenate([piece.positions for piece in pieces]),
        )
        return ResidentClips.from_clips(joined, self._device, self._groups)

    def _shards_of_epoch(self, seed: int, epoch: int) -> Iterator[tuple[int, int]]:
        """The shards in the order of the epoch, and how many videos of each the epoch uses.

        Of every block the shards together give exactly the number that the epoch uses, however small they are.
        """
        passed = [0] * len(self._stored.blocks)
        for part in shuffled(len(self._stored.parts), seed=seed, epoch=epoch).tolist():
            block = self._stored.block_of_part(part)
            count, num_used = self._stored.blocks[block]
            before = passed[block] * num_used // count
            passed[block] += len(self._stored.parts[part].rows)
            yield part, passed[block] * num_used // count - before

    def _read_part(self, part: int, num_used: int, rows: slice, seed: int, epoch: int) -> ClipFeatures:
        """Some of the `num_used` videos that the epoch uses of a shard."""
        stored_rows = len(self._stored.parts[part].rows)
        if num_used == stored_rows:
            return self._stored.read_rows(part, rows.start, rows.stop)
        used = used_of_shard(stored_rows, num_used, shard=part, seed=seed, epoch=epoch)
        return self._stored.read_rows(part, 0, stored_rows).subset(used[rows].numpy())


def open_source(
    stored: StoredClips,
    options: Ingest,
    device: torch.device,
    workers_here: int = 1,
    groups: Mapping[str, str] | None = None,
) -> Source:
    """A source of batches in the requested ingest mode; `auto` takes the first mode whose memory or disk suffices.

    All workers of a run take the same mode. `workers_here` is the number of workers that share this machine's
    memory. `groups` is the group of each video, if batches are to say which videos belong together.

    Raises
    ------
    UserError
        If a shard is damaged, or the disk is too small for the `disk` mode.
    """
    cache = cache_folder(options)
    ingest_mode = _agreed_mode(_local_mode(stored, options, device, workers_here, cache), device)
    if ingest_mode == "stream":
        return StreamedClips(stored, device, options.window_mib * 2**20, groups)
    if ingest_mode == "disk":
        return _mapped_clips(stored, cache, device, groups)
    return ResidentClips.from_clips(stored.read(), device, groups, stored.blocks)


def cache_folder(options: Ingest) -> Path:
    """The folder for temporary files, which can be written again if they are lost."""
    return Path(options.cache) if options.cache else private_folder()


def _local_mode(stored: StoredClips, options: Ingest, device: torch.device, workers_here: int, cache: Path) -> str:
    """The requested ingest mode; for `auto` the first one for which this worker has enough memory or disk."""
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


def _agreed_mode(ingest_mode: str, device: torch.device) -> str:
    """The mode with the lowest memory use among those of all workers."""
    if not dist.is_initialized():
        return ingest_mode
    index = torch.tensor(_INGEST_MODES.index(ingest_mode), device=device)
    dist.all_reduce(index, dist.ReduceOp.MAX)
    return _INGEST_MODES[int(index)]


def _mapped_clips(
    stored: StoredClips, cache: Path, device: torch.device, groups: Mapping[str, str] | None
) -> ResidentClips:
    """The clips, mapped from files that the first worker of a machine writes and all its workers share."""
    store = stored.store
    described = json.dumps([store.FORMAT, store.fingerprint, stored.mode, stored.paths])
    digest = hashlib.blake2b("\0".join([described, *stored.video_ids]).encode(), digest_size=10).hexdigest()
    folder = cache / f"scale-ray-clips-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    names = ("features.npy", "positions.npy")
    with FileLock(folder / "lock"):
        if not all((folder / name).exists() for name in names):
            _write_mapped(stored, *(folder / name for name in names))
    # Copy-on-write, because torch requires writable memory.
    features, positions = (torch.from_numpy(np.load(folder / name, mmap_mode="c")) for name in names)
    return ResidentClips(stored.video_ids, features, positions, device, "disk", groups=groups, blocks=stored.blocks)


def _write_mapped(stored: StoredClips, features_path: Path, positions_path: Path) -> None:
    unfinished = [path.with_suffix(".unfinished") for path in (features_path, positions_path)]
    try:
        features = mapped_array(unfinished[0], stored.shapes[0], np.float16)
        positions = mapped_array(unfinished[1], stored.shapes[1], np.float32)
        stored.read_into(features, positions)
        for start in range(0, len(stored), _VIDEOS_PER_CHUNK):
            chunk = positions[start : start + _VIDEOS_PER_CHUNK]
            chunk[:] = normalised_positions(torch.from_numpy(np.array(chunk))).numpy()
        features.flush()
        positions.flush()
        for path, final in zip(unfinished, (features_path, positions_path), strict=True):
            os.replace(path, final)
    except OSError as error:
        raise UserError(
            f"cache: expected space for {stored.num_bytes / 2**30:.1f} GiB of features in {features_path.parent}, "
            f"found: {error.strerror or error}; use another --cache, or --ingest stream"
        ) from error
    finally:
        for path in unfinished:
            path.unlink(missing_ok=True)


def prefetched(items: Iterator[_Item]) -> Iterator[_Item]:
    """The items in order; a thread computes each item while the one before it is in use."""
    with ThreadPoolExecutor(1, "prefetch") as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def mapped_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """A new memory-mapped array file, allocated at its full size.

    Raises
    ------
    OSError
        If the disk is too small. Without the allocation the file would be sparse, and a write to the mapping
        would kill the process when the disk is full.
    """
    mapped = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return mapped
