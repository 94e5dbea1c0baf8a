"""Where a Hugging Face model lies: a folder, the hub's cache on this machine, or the hub."""

from __future__ import annotations

import importlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale_ray.errors import UserError, first_line

_PROBE_S = 5.0
# In the order of preference: tensors alone before pickles, one file before many.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_PROCESSING = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Processing:
    """What a model's own files say of its input; None where they say nothing."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_px: int | None = None


def folder_of(source: str, *, with_weights: bool) -> Path:
    """The folder with a model's files: `source` itself, or the hub's snapshot of it, fetched if need be.

    The cache is asked before the hub, and the hub is asked for a sign of life before anything else:
    its own client would try for half a minute.

    Raises
    ------
    UserError
        Where there is no such folder and no such model, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"backbone: expected a config.json in the folder {source}, found none")
        return folder
    if source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise UserError(f"backbone: expected a folder or a hub id such as facebook/dinov2-small, found {source!r}")
    hub = importlib.import_module("huggingface_hub")
    cached = _cached(hub, source)
    if cached is not None and _complete(cached, with_weights):
        return cached
    offer = f"give a local folder, hf:FOLDER, with the files of {source}"
    if hub.constants.is_offline_mode():
        raise UserError(
            f"backbone: expected {source} in the hub's cache, found none, and HF_HUB_OFFLINE is set; {offer}"
        )
    endpoint = hub.constants.ENDPOINT
    reason = _unreachable(endpoint)
    if reason is not None:
        raise UserError(
            f"backbone: expected to download {source}, but {endpoint} cannot be reached ({reason}); {offer}"
        )
    try:
        files = _wanted(hub.list_repo_files(source), with_weights)
        return Path(hub.snapshot_download(source, allow_patterns=files, tqdm_class=_silent_bar()))
    except Exception as error:  # a network and a stranger's server: anything may come
        raise UserError(f"backbone: expected to download {source}, found: {first_line(error)}; {offer}") from error


def json_in(folder: Path, file_name: str) -> dict[str, Any]:
    """A JSON file's dictionary; empty where there is no such file.

    Raises
    ------
    UserError
        Where the file holds something else.
    """
    path = folder / file_name
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"backbone: expected JSON in {path}, found: {error}") from error
    if not isinstance(read, dict):
        raise UserError(f"backbone: expected a dictionary in {path}, found {type(read).__name__}")
    return read


def processing_in(folder: Path) -> Processing:
    """Mean, standard deviation and size of the input, from the files that the model's processor left."""
    for file_name in _PROCESSING:
        read = json_in(folder, file_name)
        read = read.get("video_processor") or read.get("image_processor") or read
        if "image_mean" not in read and "size" not in read:
            continue
        if read.get("do_normalize") is False:
            read |= {"image_mean": [0.0], "image_std": [1.0]}
        cropped = read.get("crop_size") if read.get("do_center_crop", "crop_size" in read) else None
        mean, std = _numbers(read.get("image_mean")), _numbers(read.get("image_std"))
        return Processing(mean, std, _side(cropped or read.get("size")))
    return Processing()


def _numbers(value: Any) -> tuple[float, ...] | None:
    return tuple(float(number) for number in value) if isinstance(value, list) and len(value) in (1, 3) else None


def _side(size: Any) -> int | None:
    if isinstance(size, dict):
        sides = {size[key] for key in ("height", "width", "shortest_edge") if size.get(key)}
        return int(sides.pop()) if len(sides) == 1 else None
    return size if isinstance(size, int) else None


def _cached(hub: Any, source: str) -> Path | None:
    try:
        config = hub.try_to_load_from_cache(source, "config.json")
    except hub.errors.HFValidationError as error:
        raise UserError(
            f"backbone: expected a folder or a hub id such as facebook/dinov2-small, found {source!r}"
        ) from error
    return Path(config).parent if isinstance(config, str) else None


def _complete(folder: Path, with_weights: bool) -> bool:
    return not with_weights or any((folder / name).is_file() for name in _WEIGHTS)


def _wanted(files: Iterable[str], with_weights: bool) -> list[str]:
    """The files of a repository that are needed: one format of the weights, not all."""
    present = set(files)
    wanted = [name for name in ("config.json", *_PROCESSING) if name in present]
    weights = next((name for name in _WEIGHTS if name in present), None) if with_weights else None
    if weights is not None:
        wanted.append(weights)
        if weights.endswith(".index.json"):
            stem, ending = weights.removesuffix(".index.json").rsplit(".", 1)
            wanted.append(f"{stem}-*.{ending}")
    return wanted


def _unreachable(endpoint: str) -> str | None:
    """Why the hub does not answer, or None: any answer will do, refusals included."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEADER"), timeout=_PROBE_S).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


def _silent_bar() -> Any:
    tqdm = importlib.import_module("tqdm").tqdm

    class Silent(tqdm):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent
