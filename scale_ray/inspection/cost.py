"""Estimates the cost of an extraction from measurements on a few videos.

    decoding bound = (core-seconds of decoding + seconds of reading) / decoders
    backbone bound = device-seconds of all backbones / devices
    cores bound    = (core-seconds of decoding + core-seconds of backbones on CPUs) / cores
    wall time      = maximum of the three bounds

Decoding and backbones run concurrently, so the slower one determines the wall time. On CPUs they also share the
cores, which adds the third bound. The time to start Ray and to load the backbone is not included.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from scale_ray.clips import POSITION_FIELDS
from scale_ray.config import Sampling
from scale_ray.corpus import modes_of

# Bytes of a store besides features and positions: the other columns of a video in both tables; a shard's schema.
_ROW_BYTES = 60
_SHARD_BYTES = 4500


@dataclass(frozen=True)
class Range:
    """An estimate with a confidence interval of about 95 %, from `low` to `high`."""

    estimate: float
    low: float
    high: float

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> Range:
        """The mean of a sample with its Student-t interval; half to double for a single value.

        `low` is never below the smallest value of the sample.
        """
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean, mean / 2, mean * 2)
        from scipy.stats import t as student_t  # imported here, since it takes a second

        num_errors = float(student_t.ppf(0.975, len(values) - 1))
        half_width = num_errors * statistics.stdev(values) / sqrt(len(values))
        return cls(mean, max(mean - half_width, min(values)), mean + half_width)

    def __add__(self, other: Range) -> Range:
        """The sum; the errors are assumed to be fully correlated, so `low` and `high` add up."""
        return Range(self.estimate + other.estimate, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.estimate * factor, self.low * factor, self.high * factor)

    def divided_by(self, other: Range) -> Range:
        """The ratio, with the widest interval that both ranges allow."""
        return Range(self.estimate / other.estimate, self.low / other.high, self.high / other.low)


_ZERO = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class DecodingTrial:
    """One video decoded by a single decoder; `read_s` is the time to fetch the file, None for a local file."""

    video_id: str
    mode: str
    decode_s: float
    read_s: float | None


@dataclass(frozen=True)
class BackboneTrial:
    """Batches through one backbone on one device: seconds and, on CPUs, core-seconds per clip, one value per batch.

    `modes` are those whose clips have this size of the input.
    """

    name: str
    input_px: int
    modes: tuple[str, ...]
    feature_width: int
    batch_clips: int
    seconds_per_clip: list[float]
    core_seconds_per_clip: list[float]


@dataclass(frozen=True)
class Machine:
    """The machine of the extraction: `devices` is the number of backbone actors on CPUs, otherwise of GPUs.

    `device` is `cpu` or `cuda`, `threads` the number of threads per backbone actor.
    """

    cores: int
    decoders: int
    devices: int
    device: str
    threads: int


@dataclass(frozen=True)
class CostEstimate:
    """The estimated cost of an extraction; `read_s` is None if all files are local."""

    machine: Machine
    num_videos: dict[str, int]
    num_clips: int
    decode_core_s: Range
    read_s: Range | None
    backbone_device_s: Range
    backbone_core_s: Range
    wall_s: Range
    bottleneck: str
    decoder_clips_per_s: Range
    device_clips_per_s: Range
    decoders_per_device: Range
    store_bytes: int

    def lines(self) -> list[str]:
        machine = self.machine
        decoders = f"{machine.decoders} decoder{'s' * (machine.decoders != 1)}"
        device = f"{machine.devices} x {machine.device}"
        if machine.device == "cpu":
            device += f" with {machine.threads} threads"
        videos = " and ".join(f"{count} in mode {mode}" for mode, count in self.num_videos.items())
        reading = (
            "not measured: local files" if self.read_s is None else f"{_duration(self.read_s)} of waiting in total"
        )
        return [
            f"  to do       {videos}: {self.num_clips:,} clips, {self.store_bytes / 2**20:,.1f} MiB of store",
            f"  decoding    {_duration(self.decode_core_s)} of one core, {_text(self.decoder_clips_per_s)} clips/s",
            f"  reading     {reading}",
            f"  backbone    {_duration(self.backbone_device_s)} of one device ({machine.device}), "
            f"{_text(self.device_clips_per_s)} clips/s",
            f"  wall time   {_duration(self.wall_s)} on {machine.cores} cores: {decoders}, {device}",
            f"  bottleneck  {self.bottleneck}; keeping one device busy takes {_text(self.decoders_per_device)} "
            "decoding cores",
        ]


def videos_by_mode(
    splits: Sequence[Mapping[str, str]], mode: str, *, has_several_splits: bool, scale: float
) -> dict[str, int]:
    """Number of videos that an extraction decodes in each mode, from the splits of the readable videos.

    `has_several_splits`: whether the corpus has more than one split. `scale`: number of videos that each of these
    represents.
    """
    modes_per_video = (
        modes_of(subsets, has_several_splits=has_several_splits) if mode == "auto" else (mode,) for subsets in splits
    )
    counts = Counter(video_mode for modes in modes_per_video for video_mode in modes)
    return {video_mode: round(count * scale) for video_mode, count in sorted(counts.items(), reverse=True)}


def store_bytes(num_videos: Mapping[str, int], sampling: Sampling, feature_width: int, shard_videos: int) -> int:
    """Bytes of one backbone's store: float16 features, float32 positions (both hardly compress) and other columns."""
    clip_bytes = feature_width * 2 + len(POSITION_FIELDS) * 4
    return sum(
        count * (sampling.num_clips(mode) * clip_bytes + _ROW_BYTES) + ceil(count / shard_videos) * _SHARD_BYTES
        for mode, count in num_videos.items()
    )


def estimate(
    num_videos: Mapping[str, int],
    decoding: Sequence[DecodingTrial],
    backbones: Sequence[BackboneTrial],
    machine: Machine,
    sampling: Sampling,
    shard_videos: int,
) -> CostEstimate | None:
    """Estimate the cost of decoding `num_videos` videos per mode and of encoding all their clips by every backbone.

    None if no video could be decoded in one of the modes.
    """
    trials_by_mode = {mode: [trial for trial in decoding if trial.mode == mode] for mode in num_videos}
    if not num_videos or not all(trials_by_mode.values()):
        return None
    num_clips = sum(count * sampling.num_clips(mode) for mode, count in num_videos.items())
    decode_core_s, reading_s = _ZERO, _ZERO
    for mode, trials in trials_by_mode.items():
        decode_core_s += Range.of_mean([trial.decode_s for trial in trials]) * num_videos[mode]
        reading_s += Range.of_mean([trial.read_s or 0.0 for trial in trials]) * num_videos[mode]
    backbone_device_s, backbone_core_s = _ZERO, _ZERO
    for backbone in backbones:
        num_its_clips = sum(num_videos.get(mode, 0) * sampling.num_clips(mode) for mode in backbone.modes)
        backbone_device_s += Range.of_mean(backbone.seconds_per_clip) * num_its_clips
        if machine.device == "cpu":
            backbone_core_s += Range.of_mean(backbone.core_seconds_per_clip) * num_its_clips
    bounds = {
        "decoding": (decode_core_s + reading_s) * (1 / machine.decoders),
        "backbone": backbone_device_s * (1 / machine.devices),
        "cores": (decode_core_s + backbone_core_s) * (1 / machine.cores),
    }
    clips = Range(num_clips, num_clips, num_clips)
    return CostEstimate(
        machine=machine,
        num_videos=dict(num_videos),
        num_clips=num_clips,
        decode_core_s=decode_core_s,
        read_s=None if all(trial.read_s is None for trial in decoding) else reading_s,
        backbone_device_s=backbone_device_s,
        backbone_core_s=backbone_core_s,
        wall_s=Range(
            *(max(getattr(bound, field) for bound in bounds.values()) for field in ("estimate", "low", "high"))
        ),
        bottleneck=_bottleneck(bounds, decode_core_s, reading_s, backbone_core_s),
        decoder_clips_per_s=clips.divided_by(decode_core_s),
        device_clips_per_s=clips.divided_by(backbone_device_s),
        decoders_per_device=decode_core_s.divided_by(backbone_device_s),
        store_bytes=sum(
            store_bytes(
                {mode: num_videos[mode] for mode in backbone.modes if mode in num_videos},
                sampling,
                backbone.feature_width,
                shard_videos,
            )
            for backbone in backbones
        ),
    )


def _bottleneck(bounds: Mapping[str, Range], decode_core_s: Range, reading_s: Range, backbone_core_s: Range) -> str:
    """What determines the wall time: decoding, reading or the backbone."""
    largest = max(bounds, key=lambda name: bounds[name].estimate)
    if largest == "decoding":
        return "reading" if reading_s.estimate > decode_core_s.estimate else "decoding"
    if largest == "cores":
        return "backbone" if backbone_core_s.estimate > decode_core_s.estimate else "decoding"
    return "backbone"


def _duration(range_s: Range) -> str:
    """Text such as `3.2 min (2.9 to 3.6)`, in a unit suited to the estimate."""
    size, unit = next(
        (entry for entry in ((86400, "days"), (3600, "h"), (60, "min")) if range_s.estimate >= 2 * entry[0]), (1, "s")
    )
    return _text(range_s * (1 / size), f" {unit}")


def _text(range_: Range, unit: str = "") -> str:
    estimate, low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in vars(range_).values())
    return f"{estimate}{unit} ({low} to {high})"
