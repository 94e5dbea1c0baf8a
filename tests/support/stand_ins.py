"""Tiny copies of the public data sets, with their folders, names and lists, and of the public weights."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import torch
from support.videos import encode
from support.weights import released_svt, write_contrastive_slow_r50

CLIP_FRAMES = 16
_KINETICS_COLUMNS = "label,youtube_id,time_start,time_end,split\n"


def make_data_sets(root: Path) -> None:
    """Write UCF-101, HMDB-51, Kinetics-400, Something-Something V2 and LVU below `root`."""
    root.mkdir(parents=True)
    avis = [encode(root / f"{seconds}.avi", "mpeg4", seconds=seconds) for seconds in range(1, 7)]
    mp4 = encode(root / "video.mp4", preset="veryfast", seconds=3)
    webm = encode(root / "video.webm", "libvpx-vp9", seconds=3, **{"deadline": "realtime", "cpu-used": "8"})
    _ucf101(root, avis)
    _hmdb51(root, avis)
    _kinetics(root / "k400", mp4)
    _ssv2(root / "ssv2", webm)
    _lvu(root / "lvu", mp4)
    for video in (*avis, mp4, webm):
        video.unlink()


def make_weights(folder: Path, hub_cache: Path) -> None:
    """Write the files of rho-BYOL and SVT in their published layout, and tiny VideoMAEs into a cache of the hub."""
    folder.mkdir(parents=True)
    write_contrastive_slow_r50(folder / "BYOL_SlowR50_16x4_T4_epoch_00200.pyth", "backbone", "backbone_hist")
    torch.save(released_svt(), folder / "kinetics400_vitb_ssl.pth")
    with warnings.catch_warnings(action="ignore"):  # warnings of the library about its own code
        import transformers as hf
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "num_frames": CLIP_FRAMES}
    sizes |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    torch.manual_seed(0)
    for name, width, model_class in (
        ("videomae-base", 32, hf.VideoMAEForPreTraining),
        ("videomae-base-finetuned-kinetics", 32, hf.VideoMAEForVideoClassification),
        ("videomae-large", 64, hf.VideoMAEForPreTraining),
    ):
        is_classifier = model_class is hf.VideoMAEForVideoClassification
        config = hf.VideoMAEConfig(hidden_size=width, intermediate_size=64, use_mean_pooling=is_classifier, **sizes)
        stored = hub_cache / f"models--MCG-NJU--{name}"
        model_class(config).save_pretrained(stored / "snapshots" / ("0" * 40))
        _write(stored / "refs" / "main", "0" * 40)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _copies(video: Path, folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder / name)


def _ucf101(root: Path, videos: list[Path]) -> None:
    """Two classes of six groups; split n tests the groups 2n - 1 and 2n. One class is spelled in two ways.

    Videos of different groups differ.
    """
    spelled = {"Archery": "Archery", "HandstandPushups": "HandStandPushups"}
    names = {
        group: [f"{label}/v_{name}_g{group:02d}_c01.avi" for label, name in spelled.items()] for group in range(1, 7)
    }
    for video, of_group in zip(videos, names.values(), strict=True):
        _copies(video, root / "UCF-101", *of_group)
    for split in (1, 2, 3):
        tested = (2 * split - 1, 2 * split)
        lines = {
            subset: [
                name + f" {number}" * (subset == "train")
                for group, of_group in names.items()
                if (group in tested) == (subset == "test")
                for number, name in enumerate(of_group, 1)
            ]
            for subset in ("train", "test")
        }
        for subset, of_subset in lines.items():
            _write(root / "ucfTrainTestlist" / f"{subset}list0{split}.txt", "\n".join(of_subset) + "\n")


def _hmdb51(root: Path, videos: list[Path]) -> None:
    """Two classes of four films; film n is tested in split n, and the fourth is in no subset of split 1."""
    for label in ("brush_hair", "wave"):
        names = [f"film{film}_{label}_u_nm_np1_ba_goo_0.avi" for film in (1, 2, 3, 4)]
        for video, name in zip(videos, names, strict=False):
            _copies(video, root / "hmdb51" / label, name)
        for split in (1, 2, 3):
            marks = [2 if film == split else 0 if (film, split) == (4, 1) else 1 for film in (1, 2, 3, 4)]
            lines = "".join(f"{name} {mark} \n" for name, mark in zip(names, marks, strict=True))
            _write(root / "testTrainMulti_7030_splits" / f"{label}_test_split{split}.txt", lines)


def _kinetics(root: Path, video: Path) -> None:
    rows = {
        "train": [("air drumming", "abcdefghijk", 1), ("air drumming", "-_3B32lo_2M", 59), ("yoga", "gone_______", 0)],
        "val": [("air drumming", "ABCDEFGHIJK", 3), ("yoga", "yogayogayog", 5)],
    }
    for subset, of_subset in rows.items():
        lines = [f"{label},{name},{start},{start + 10},{subset}" for label, name, start in of_subset]
        _write(root / "annotations" / f"{subset}.csv", _KINETICS_COLUMNS + "\n".join(lines) + "\n")
        for label, name, start in of_subset:
            if not name.startswith("gone"):
                _copies(video, root / subset / label, f"{name}_{start:06d}_{start + 10:06d}.mp4")


def _ssv2(root: Path, video: Path) -> None:
    lists = {
        "train": [{"id": "1", "template": "Putting [something] on [a surface]"}],
        "validation": [{"id": "2", "template": "Holding [something]"}],
        "test": [{"id": "3"}],
    }
    _copies(video, root / "20bn-something-something-v2", *(f"{number}.webm" for number in (1, 2, 3)))
    for name, entries in lists.items():
        _write(root / "labels" / f"{name}.json", json.dumps(entries))


def _lvu(root: Path, video: Path) -> None:
    """Lists with a header; the columns that are read are the first (a number) and the third (the video)."""
    _copies(video, root / "videos", "aaaaaaaaaaa.mp4", "bbbbbbbbbbb.mp4")
    _write(root / "lvu_1.0/genre/train.csv", "genre name video\n0 action aaaaaaaaaaa\n1 comedy gone_______\n")
    _write(root / "lvu_1.0/genre/val.csv", "genre name video\n1 comedy bbbbbbbbbbb\n")
