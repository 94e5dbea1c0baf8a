"""The names of backbones to what they are and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scale_ray.backbones import BackboneFacts, backbone_facts, torchvision_facts
from scale_ray.config import BackboneOptions
from scale_ray.console import Result
from scale_ray.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_ALSO = {
    "slow_r50": "Slow R50 of rho-BYOL, from a file of SlowFast's model zoo",
    "svt": "Self-supervised Video Transformer, from a file of its authors",
    "i3d": "I3D, the RGB network, from a file of pytorch-i3d or kinetics_i3d_pytorch",
    "hf:ID_OR_FOLDER": "VideoMAE, TimeSformer, V-JEPA 2, CLIP, DINOv2 and DINOv3 of Hugging Face",
    "package.module:function": "a function of your own that returns a backbone",
}
_NOTES = (
    "",
    "A clip has 16 frames; GFLOP count a multiplication with its addition as one. Image models see the frames",
    "one by one; with --frame-pooling moments they are three times as wide.",
)


@dataclass(frozen=True)
class BackbonesResult(Result):
    """The figures of some backbones, or of all that have a plain name."""

    facts: Sequence[BackboneFacts]
    is_complete: bool

    def lines(self) -> list[str]:
        measured = any(each.seconds_per_clip is not None for each in self.facts)
        heads = ("name", "sees", "width", "px", "frames", "parameters/M", "GFLOP/clip", *(("s/clip",) * measured))
        table = [heads, *map(_cells, self.facts)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if at < 2 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        lines += _NOTES
        if self.is_complete:
            widest = max(map(len, _ALSO))
            lines += ["Also:", *(f"  {name.ljust(widest)}  {text}" for name, text in _ALSO.items())]
        return lines

    def values(self) -> dict[str, Any]:
        return {"backbones": [vars(each) for each in self.facts], "also": _ALSO}

    def to_pandas(self) -> pd.DataFrame:
        """A row per backbone."""
        import pandas as pd

        return pd.DataFrame([vars(each) for each in self.facts])


def backbones(names: Sequence[str] = (), *, measure: bool = False) -> BackbonesResult:
    """The figures of the named backbones, or of every model of torchvision; `measure` times the named ones here.

    Raises
    ------
    UserError
        If a backbone cannot be loaded, or nothing is named to be measured.
    """
    if measure and not names:
        raise UserError("--measure: expected the NAMEs of backbones to measure, found none")
    if not names:
        return BackbonesResult(torchvision_facts(), is_complete=True)
    facts = [backbone_facts(BackboneOptions(backbone=name), measure=measure) for name in names]
    return BackbonesResult(facts, is_complete=False)


def _cells(facts: BackboneFacts) -> tuple[str, ...]:
    return (
        facts.name,
        "video" if facts.sees_video else "image",
        str(facts.feature_width),
        str(facts.input_px),
        str(facts.frames or "any"),
        f"{facts.parameters_millions:.1f}",
        f"{facts.gflop_per_clip:.1f}",
        *([f"{facts.seconds_per_clip:.3g}"] if facts.seconds_per_clip is not None else []),
    )
