"""The command `backbones`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--measure", is_flag=True, help="Measure the seconds that a clip takes here, for each NAME.")
@command()
def backbones(caller: Caller, names: tuple[str, ...], measure: bool) -> int:
    """List what --backbone takes, with sizes and costs; with NAMEs, those of these alone.

    A NAME may be anything that --backbone takes, an hf: folder or a function of your own too.
    """
    from scale_ray.backbones import facts_of, facts_of_torchvision

    if measure and not names:
        raise UserError("--measure: expected the NAMEs of backbones to measure, found none")
    if names:
        facts = [facts_of(BackboneOptions(backbone=name), measure=measure) for name in names]
    else:
        facts = facts_of_torchvision()
    heads = ("name", "sees", "width", "px", "frames", "parameters/M", "GFLOP/clip", *(("s/clip",) if measure else ()))
    rows = [
        (
            each.name,
            "video" if each.sees_video else "image",
            str(each.feature_width),
            str(each.input_px),
            str(each.frames or "any"),
            f"{each.parameters_millions:.1f}",
            f"{each.gflop_per_clip:.1f}",
            *([f"{each.seconds_per_clip:.3g}"] if each.seconds_per_clip is not None else []),
        )
        for each in facts
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in (heads, *rows))
    ]
    also = {
        "slow_r50": "Slow R50 of rho-BYOL, from a file of SlowFast's model zoo",
        "svt": "Self-supervised Video Transformer, from a file of its authors",
        "hf:ID_OR_FOLDER": "VideoMAE, TimeSformer, V-JEPA 2, CLIP, DINOv2 and DINOv3 of Hugging Face",
        "package.module:function": "a function of your own that returns a backbone",
    }
    lines += [
        "",
        "A clip has 16 frames; GFLOP count a multiplication with its addition as one. Image models see the frames",
        "one by one; with --frame-pooling moments they are three times as wide.",
    ]
    if not names:
        widest = max(map(len, also))
        lines += ["Also:", *(f"  {name.ljust(widest)}  {text}" for name, text in also.items())]
    caller.answer(lines, {"backbones": [vars(each) for each in facts], "also": also})
    return 0
