"""Decodes files made from those of a folder by random damage; each must give clips or a reason, in time.

File number n of a seed is always the same: one or two kinds of damage are applied to a file drawn at random. It is cut,
bytes are flipped in its header, its middle or everywhere, blocks of it are zeroed, removed or repeated, it is joined
with another file, or fields of its headers are rewritten: sizes, time scales, durations, dimensions and offsets of MP4,
Matroska, AVI, MPEG, H.264, FLV and GIF. Each file is decoded by the child process that `extract` uses.

What must hold: no exception but a VideoError, no answer later than the deadline, a reason of one printable line, and
positions and a geometry that are finite. A file for which something does not hold is written to `--folder`; so is file
number N with `--only N`. Exit code 1 if there was one.
"""

from __future__ import annotations

import collections
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import folder_of, parser, report

from scale_ray.clips import MODES
from scale_ray.config import Sampling
from scale_ray.decoding import Decoder, Request, SharedPixels, video_bytes
from scale_ray.errors import VideoError

SAMPLING = Sampling(frames=4, clips=2, eval_times=2, eval_crops=1)
INPUT_SIZE_PX = 32
# Starting a child and ending one that hangs takes this long at most.
GRACE_S = 5.0
HEADER_BYTES = 4096
REASON_CHARACTERS = 300

Damage = Callable[[bytearray, random.Random, Sequence[bytes]], None]

# Beginnings of headers: how many bytes before and behind them hold sizes, time scales, durations or dimensions.
_MARKERS = (
    *((box, 4, 40) for box in b"moov trak mdia minf stbl moof mdat ftyp".split()),
    *((box, 4, 96) for box in b"mvhd tkhd mdhd elst stsd avc1 hvc1 avcC hvcC pasp".split()),
    *((box, 4, 160) for box in b"stts ctts stsc stsz stco co64 stss trun tfhd sidx".split()),  # codespell:ignore
    *((box, 4, 60) for box in b"meta iloc iinf ispe hdlr mp4v esds av01 vp09 colr".split()),
    # Matroska: header, segment, time scale, duration, width, height, frame duration, cluster, time, cues, block group.
    *((element, 0, 12) for element in (b"\x1aE\xdf\xa3", b"\x18S\x80g", b"*\xd7\xb1", b"D\x89", b"\xb0", b"\xba")),
    *((element, 0, 12) for element in (b"#\xe3\x83", b"\x1fC\xb6u", b"\xe7", b"\x1cS\xbbk", b"\xa0", b"\x16T\xaek")),
    *((chunk, 0, 64) for chunk in b"RIFF LIST avih strh strf idx1 movi 00dc 01wb".split()),
    # MPEG: sequence, picture, group, extension, pack and stream headers; H.264 parameter sets; transport stream.
    *((b"\0\0\1" + bytes([code]), 0, 16) for code in b"\xb3\x00\xb8\xb5\xba\xe0\x20\x67\x68\x27\x65"),
    (b"G@", 0, 24),
    (b"FLV", 0, 24),
    (b"GIF8", 0, 16),
    (b"!\xf9\x04", 0, 8),
)
_EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def cut(content: bytearray, draw: random.Random, _: Sequence[bytes]) -> None:
    del content[draw.randrange(len(content)) :]


def cut_beginning(content: bytearray, draw: random.Random, _: Sequence[bytes]) -> None:
    del content[: draw.randrange(len(content))]


def flip(content: bytearray, draw: random.Random, first: int, last: int) -> None:
    for _ in range(draw.choice([1, 3, 10, 100, 1000])):
        content[draw.randrange(first, max(last, first + 1))] ^= 1 << draw.randrange(8)


def flip_header(content: bytearray, draw: random.Random, _: Sequence[bytes]) -> None:
    """The header of MP4 may be at the end."""
    if draw.random() < 0.5:
        flip(content, draw, 0, min(HEADER_BYTES, len(content)))
    else:
        flip(content, draw, max(len(content) - HEADER_BYTES, 0), len(content))


def flip_middle(content: bytearray, draw: random.Random, _: Sequence[bytes]) -> None:
    flip(content, draw, len(content) // 4, len(content) * 3 // 4)


def flip_everywhere(content: bytearray, draw: random.Random, _: Sequence[bytes]) -> None:
    flip(content, draw, 0, len(content))


def join(content: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """Another file, or its end, follows this one or its beginning."""
    other = draw.choice(others)
    if draw.random() < 0.7:
        del content[draw.randrange(len(content)) :]
        other = other[draw.randrange(len(other)) :]
    content += other


def rewrite_header(content: bytearray, draw: random.Random, _: Sequence[bytes]) -> None:
    """1 to 5 numbers beside names of headers become extreme, random or slightly different."""
    places = [(at, before, behind + len(name)) for name, before, behind in _MARKERS for at in _places_of(content, name)]
    if not places:
        flip(content, draw, 0, min(HEADER_BYTES, len(content)))
        return
    for _ in range(draw.randint(1, 5)):
        at, before, behind = draw.choice(places)
        size = draw.choice([1, 2, 4, 4, 8])
        start = max(at - before + draw.randrange(before + behind), 0)
        if draw.random() < 0.6:
            start -= (start - at) % min(size, 4)
        field = content[start : start + size]
        old = int.from_bytes(field, "big")
        new = draw.choice([draw.choice(_EXTREMES), draw.getrandbits(8 * size), old + draw.choice([-1, 1]), old * 2])
        content[start : start + size] = (new % (1 << (8 * size))).to_bytes(size, "big")[: len(field)]


def _places_of(content: bytearray, name: bytes, most: int = 8) -> list[int]:
    places: list[int] = []
    at = content.find(name)
    while at >= 0 and len(places) < most:
        places.append(at)
        at = content.find(name, at + 1)
    return places


def zero_blocks(content: bytearray, draw: random.Random, _: Sequence[bytes]) -> None:
    for first, last in _blocks(content, draw):
        content[first:last] = bytes(last - first)


def remove_blocks(content: bytearray, draw: random.Random, _: Sequence[bytes]) -> None:
    for first, last in _blocks(content, draw):
        del content[first:last]


def repeat_blocks(content: bytearray, draw: random.Random, _: Sequence[bytes]) -> None:
    for first, last in _blocks(content, draw):
        content[last:last] = content[first:last]


def _blocks(content: bytearray, draw: random.Random) -> list[tuple[int, int]]:
    size = draw.choice([16, 188, 512, 4096, 65536])
    starts = sorted((draw.randrange(len(content)) for _ in range(draw.randint(1, 8))), reverse=True)
    return [(start, min(start + size, len(content))) for start in starts]


DAMAGES: tuple[Damage, ...] = (
    cut,
    cut_beginning,
    flip_header,
    flip_middle,
    flip_everywhere,
    join,
    rewrite_header,
    rewrite_header,
    rewrite_header,
    zero_blocks,
    remove_blocks,
    repeat_blocks,
)


@dataclass(frozen=True)
class Damaged:
    """A damaged file: `made_by` names the file it was made from and the kinds of damage."""

    made_by: str
    suffix: str
    content: bytes


def damaged(paths: Sequence[Path], contents: Sequence[bytes], seed: int, number: int) -> Damaged:
    """File number `number` of a seed."""
    draw = random.Random(f"{seed}-{number}")
    chosen = draw.randrange(len(paths))
    content = bytearray(contents[chosen])
    names = []
    for damage in draw.sample(DAMAGES, draw.choice([1, 1, 2])):
        if content:
            damage(content, draw, contents)
            names.append(damage.__name__)
    return Damaged(f"{paths[chosen].name}: {', '.join(names)}", paths[chosen].suffix, bytes(content))


@dataclass(frozen=True)
class Outcome:
    """What became of a file: `kind` is done, refused, crashed, timed out or memory; `wrong` is what does not hold."""

    kind: str
    reason: str
    seconds: float
    wrong: str


def attempt(decoder: Decoder, path: Path, number: int, pixels: SharedPixels, timeout_s: float) -> Outcome:
    """Decode one file."""
    mode = MODES[number % len(MODES)]
    started = time.monotonic()
    kind, reason, wrong = "done", "", ""
    try:
        decoded = decoder.decode(Request(str(path), str(number), mode, SAMPLING, (INPUT_SIZE_PX,), (0,)), pixels)
        geometry = decoded.geometry
        if not np.isfinite(decoded.positions).all():
            wrong = "positions that are not finite"
        elif not (geometry.height_px > 0 and geometry.width_px > 0 and 0 <= geometry.duration_s < float("inf")):
            wrong = f"geometry {geometry}"
    except VideoError as error:
        reason = error.reason
        kind = _kind_of(reason)
        if not reason.strip() or not reason.isprintable() or len(reason) > REASON_CHARACTERS:
            wrong = f"a reason that is not one printable line: {reason!r}"
    except Exception as error:  # noqa: BLE001 - what is looked for
        kind, wrong = "exception", f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - started
    if seconds > timeout_s + GRACE_S:
        wrong = f"took {seconds:.0f} s, deadline {timeout_s:g} s"
    return Outcome(kind, reason, seconds, wrong)


def _kind_of(reason: str) -> str:
    if reason.startswith("crashed the decoder"):
        return "crashed"
    if reason.startswith("took longer"):
        return "timed out"
    return "memory" if "GiB" in reason else "refused"


def grouped(reason: str) -> str:
    """A reason without the numbers of one file."""
    return re.sub(r"-?\d+(\.\d+)?", "N", reason)[:100]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("folders", nargs="+", type=Path, help="folders of intact files")
    arguments.add_argument("--count", type=int, default=2000, help="number of damaged files")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the damage")
    arguments.add_argument("--only", type=int, help="make and decode only the file of this number")
    arguments.add_argument("--max-bytes", type=int, help="leave out intact files that are larger")
    arguments.add_argument("--timeout-s", type=float, default=300.0, help="deadline per file")
    arguments.add_argument("--memory-gib", type=float, default=8.0, help="memory that the child may map")
    given = arguments.parse_args()
    most = float("inf") if given.max_bytes is None else given.max_bytes
    paths = sorted(path for folder in given.folders for path in folder.iterdir() if path.is_file())
    paths = [path for path in paths if path.stat().st_size <= most]
    if not paths:
        sys.exit(f"folders: expected files, found none in {', '.join(map(str, given.folders))}")
    contents = [path.read_bytes() for path in paths]
    numbers = range(given.count) if given.only is None else [given.only]
    pixels = SharedPixels(max(video_bytes(mode, SAMPLING, [INPUT_SIZE_PX]) for mode in MODES))
    outcomes: dict[str, Outcome] = {}
    with folder_of(given) as folder, Decoder(timeout_s=given.timeout_s, memory_gib=given.memory_gib) as decoder:
        for number in numbers:
            file = damaged(paths, contents, given.seed, number)
            path = folder / f"{number:05d}{file.suffix}"
            path.write_bytes(file.content)
            outcome = attempt(decoder, path, number, pixels, given.timeout_s)
            outcomes[f"{number} ({file.made_by})"] = outcome
            if outcome.wrong:
                print(f"{number} ({file.made_by}): {outcome.wrong}", file=sys.stderr, flush=True)
            elif given.only is None:
                path.unlink()
            if number % 100 == 99:
                print(f"{number + 1} files: {kinds_of(outcomes)}", file=sys.stderr, flush=True)
    given.folders = [folder.name for folder in given.folders]
    report("fuzz", given, figures_of(outcomes))
    sys.exit(any(outcome.wrong for outcome in outcomes.values()))


def kinds_of(outcomes: dict[str, Outcome]) -> dict[str, int]:
    return dict(collections.Counter(outcome.kind for outcome in outcomes.values()).most_common())


def figures_of(outcomes: dict[str, Outcome]) -> dict[str, object]:
    reasons = collections.Counter(grouped(outcome.reason) for outcome in outcomes.values() if outcome.reason)
    slowest = sorted(outcomes.items(), key=lambda item: -item[1].seconds)[:5]
    return {
        "files": len(outcomes),
        "outcomes": kinds_of(outcomes),
        "wrong": {name: outcome.wrong for name, outcome in outcomes.items() if outcome.wrong},
        "crashed": {
            name: outcome.reason
            for name, outcome in outcomes.items()
            if outcome.kind in ("crashed", "timed out", "memory")
        },
        "slowest": {name: f"{outcome.seconds:.1f} s, {outcome.kind}" for name, outcome in slowest},
        "seconds in all": round(sum(outcome.seconds for outcome in outcomes.values())),
        "largest memory of a child, GiB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2),
        "reasons": dict(reasons.most_common(60)),
    }


if __name__ == "__main__":
    main()
