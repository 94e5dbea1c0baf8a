"""What an extraction will cost: arithmetic on what was measured with a few videos.

    decoding side = (core-seconds of decoding + seconds of reading) / decoders
    backbone side = device-seconds of all backbones / devices
    cores         = (core-seconds of decoding + those of a backbone on CPUs) / cores
    wall time     = the largest of the three

Both sides work at the same time, so the slower one decides; on CPUs they share the cores, so they cannot be
faster than all cores together either. Starting Ray and loading the backbone come on top.
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

# Student's t: 95 % of all samples of 2, 3, ... values have their true mean within so many standard errors.
_STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
# Of a store, beside features and positions: a video's other columns, in both tables, and a shard's own schema.
_ROW_BYTES = 60
_SHARD_BYTES = 4500


@dataclass(frozen=True)
class Range:
    """An estimate, and between which values the true one lies in about 95 of 100 cases."""

    estimate: float
    low: float
    high: float

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> Range:
        """The mean that a sample stands for; a single value may be wrong by half or double."""
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean, mean / 2, mean * 2)
        errors = _STUDENT_T[min(len(values) - 1, len(_STUDENT_T)) - 1]
        reach = errors * statistics.stdev(values) / sqrt(len(values))
        return cls(mean, max(mean - reach, min(values)), mean + reach)

    def __add__(self, other: Range) -> Range:
        """The sum; both may be wrong the same way."""
        return Range(self.estimate + other.estimate, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.estimate * factor, self.low * factor, self.high * factor)

    def over(self, other: Range) -> Range:
        return Range(self.estimate / other.estimate, self.low / other.high, self.high / other.low)


_NOTHING = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class DecodingTrial:
    """One video decoded alone by one decoder; `read_s` are the seconds to fetch it, None for a local file."""

    video_id: str
    mode: str
    decode_s: float
    read_s: float | None


@dataclass(frozen=True)
class BackboneTrial:
    """Batches through one backbone on one device: seconds and, on CPUs, core-seconds a clip, for each batch."""

    name: str
    feature_width: int
    batch_clips: int
    seconds_per_clip: list[float]
    core_seconds_per_clip: list[float]


@dataclass(frozen=True)
class Machine:
    """What the extraction would run on: `devices` of a kind (`cpu`, `cuda`) with a backbone actor's share each."""

    cores: int
    decoders: int
    devices: int
    device: str
    threads: int


@dataclass(frozen=True)
class CostEstimate:
    """The cost of an extraction; `read_s` is None where all files are local."""

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
        reading = "not measured: local files" if self.read_s is None else f"{_duration(self.read_s)} of waiting in all"
        return [
            f"  to do       {videos}: {self.num_clips:,} clips, {self.store_bytes / 2**20:,.1f} MiB of store",
            f"  decoding    {_duration(self.decode_core_s)} of one core, {_text(self.decoder_clips_per_s)} clips/s",
            f"  reading     {reading}",
            f"  backbone    {_duration(self.backbone_device_s)} of one device ({machine.device}), "
            f"{_text(self.device_clips_per_s)} clips/s",
            f"  wall time   {_duration(self.wall_s)} on {machine.cores} cores: {decoders}, {device}",
            f"  bottleneck  {self.bottleneck}; to keep one device busy takes {_text(self.decoders_per_device)} "
            "decoding cores",
        ]


def videos_by_mode(splits: Sequence[Mapping[str, str]], mode: str, *, several: bool, scale: float) -> dict[str, int]:
    """How many videos an extraction decodes in each mode, from the splits of those that can be read.

    `several` says that the corpus has more than one split, `scale` for how many each of these videos stands.
    """
    counts = Counter(
        one for sides in splits for one in (modes_of(sides, several=several) if mode == "auto" else (mode,))
    )
    return {one: round(count * scale) for one, count in sorted(counts.items(), reverse=True)}


def store_bytes(num_videos: Mapping[str, int], sampling: Sampling, feature_width: int, shard_videos: int) -> int:
    """Bytes of one backbone's store: float16 features and float32 positions, which hardly compress, and the rest."""
    clip = feature_width * 2 + len(POSITION_FIELDS) * 4
    return sum(
        count * (sampling.num_clips(mode) * clip + _ROW_BYTES) + ceil(count / shard_videos) * _SHARD_BYTES
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
    """The cost of decoding `num_videos` in each mode and of all their clips in every backbone.

    None where no video of some mode could be decoded.
    """
    tried = {mode: [trial for trial in decoding if trial.mode == mode] for mode in num_videos}
    if not num_videos or not all(tried.values()):
        return None
    num_clips = sum(count * sampling.num_clips(mode) for mode, count in num_videos.items())
    decode_core_s, reading_s = _NOTHING, _NOTHING
    for mode, trials in tried.items():
        decode_core_s += Range.of_mean([trial.decode_s for trial in trials]) * num_videos[mode]
        reading_s += Range.of_mean([trial.read_s or 0.0 for trial in trials]) * num_videos[mode]
    backbone_device_s, backbone_core_s = _NOTHING, _NOTHING
    for backbone in backbones:
        backbone_device_s += Range.of_mean(backbone.seconds_per_clip) * num_clips
        if machine.device == "cpu":
            backbone_core_s += Range.of_mean(backbone.core_seconds_per_clip) * num_clips
    sides = {
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
        wall_s=Range(*(max(getattr(side, end) for side in sides.values()) for end in ("estimate", "low", "high"))),
        bottleneck=_bottleneck(sides, decode_core_s, reading_s, backbone_core_s),
        decoder_clips_per_s=clips.over(decode_core_s),
        device_clips_per_s=clips.over(backbone_device_s),
        decoders_per_device=decode_core_s.over(backbone_device_s),
        store_bytes=sum(store_bytes(num_videos, sampling, one.feature_width, shard_videos) for one in backbones),
    )


def _bottleneck(sides: Mapping[str, Range], decode_core_s: Range, reading_s: Range, backbone_core_s: Range) -> str:
    """What decides the wall time: decoding, reading or the backbone."""
    largest = max(sides, key=lambda side: sides[side].estimate)
    if largest == "decoding":
        return "reading" if reading_s.estimate > decode_core_s.estimate else "decoding"
    if largest == "cores":
        return "backbone" if backbone_core_s.estimate > decode_core_s.estimate else "decoding"
    return "backbone"


def _duration(range_s: Range) -> str:
    """`3.2 min (2.9 to 3.6)`, in the unit that suits the estimate."""
    size, unit = next(
        (entry for entry in ((86400, "days"), (3600, "h"), (60, "min")) if range_s.estimate >= 2 * entry[0]), (1, "s")
    )
    return _text(range_s * (1 / size), f" {unit}")


def _text(range_: Range, unit: str = "") -> str:
    estimate, low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in vars(range_).values())
    return f"{estimate}{unit} ({low} to {high})"
