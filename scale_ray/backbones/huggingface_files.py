"""Locates the files of a Hugging Face model: in a folder, in the local cache of the hub, or on the hub."""

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

_HUB_TIMEOUT_S = 5.0
# In order of preference: safetensors before pickles, one file before several.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_PROCESSING = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Processing:
    """The input that a model's files specify; None for a value that they do not specify."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_px: int | None = None


def folder_of(source: str, *, with_weights: bool) -> Path:
    """The folder with a model's files: `source` itself, or the hub's snapshot of it, downloaded if necessary.

    The local cache is tried before the hub. Before a download, one short request tests whether the hub is
    reachable, because the hub's own client would retry for half a minute.

    Raises
    ------
    UserError
        If neither a folder nor a model of this name exists, or if the hub cannot be reached.
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
    if cached is not None and _is_complete(cached, with_weights):
        return cached
    hint = f"give a local folder, hf:FOLDER, with the files of {source}"
    if hub.constants.is_offline_mode():
        raise UserError(
            f"backbone: expected {source} in the hub's local cache, since HF_HUB_OFFLINE is set, found none; {hint}"
        )
    endpoint = hub.constants.ENDPOINT
    reason = _unreachable_reason(endpoint)
    if reason is not None:
        raise UserError(f"backbone: expected to download {source}, but {endpoint} cannot be reached ({reason}); {hint}")
    try:
        files = _files_to_download(hub.list_repo_files(source), with_weights)
        return Path(hub.snapshot_download(source, allow_patterns=files, tqdm_class=_silent_bar()))
    except Exception as error:  # a network and a remote server can cause any exception
        raise UserError(f"backbone: expected to download {source}, found: {first_line(error)}; {hint}") from error


def json_in(folder: Path, file_name: str) -> dict[str, Any]:
    """Read the dictionary in a JSON file; empty if the file does not exist.

    Raises
    ------
    UserError
        If the file contains anything else.
    """
    path = folder / file_name
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"backbone: expected JSON in {path}, found: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"backbone: expected a dictionary in {path}, found {type(values).__name__}")
    return values


def processing_in(folder: Path) -> Processing:
    """Mean, standard deviation and size of the input, from the files of the model's preprocessor."""
    for file_name in _PROCESSING:
        values = json_in(folder, file_name)
        values = values.get("video_processor") or values.get("image_processor") or values
        if "image_mean" not in values and "size" not in values:
            continue
        if values.get("do_normalize") is False:
            values |= {"image_mean": [0.0], "image_std": [1.0]}
        crop_size = values.get("crop_size") if values.get("do_center_crop", "crop_size" in values) else None
        mean, std = _numbers(values.get("image_mean")), _numbers(values.get("image_std"))
        return Processing(mean, std, _square_px(crop_size or values.get("size")))
    return Processing()


def _numbers(value: Any) -> tuple[float, ...] | None:
    return tuple(float(number) for number in value) if isinstance(value, list) and len(value) in (1, 3) else None


def _square_px(size: Any) -> int | None:
    if isinstance(size, dict):
        sizes_px = {size[key] for key in ("height", "width", "shortest_edge") if size.get(key)}
        return int(sizes_px.pop()) if len(sizes_px) == 1 else None
    return size if isinstance(size, int) else None


def _cached(hub: Any, source: str) -> Path | None:
    try:
        config = hub.try_to_load_from_cache(source, "config.json")
    except hub.errors.HFValidationError as error:
        raise UserError(
            f"backbone: expected a folder or a hub id such as facebook/dinov2-small, found {source!r}"
        ) from error
    return Path(config).parent if isinstance(config, str) else None


def _is_complete(folder: Path, with_weights: bool) -> bool:
    return not with_weights or any((folder / name).is_file() for name in _WEIGHTS)


def _files_to_download(files: Iterable[str], with_weights: bool) -> list[str]:
    """The files of a repository that are needed, with the weights in one format only."""
    available = set(files)
    needed = [name for name in ("config.json", *_PROCESSING) if name in available]
    weights = next((name for name in _WEIGHTS if name in available), None) if with_weights else None
    if weights is not None:
        needed.append(weights)
        if weights.endswith(".index.json"):
            stem, ending = weights.removesuffix(".index.json").rsplit(".", 1)
            needed.append(f"{stem}-*.{ending}")
    return needed


def _unreachable_reason(endpoint: str) -> str | None:
    """Why the hub cannot be reached; None if it can. Any HTTP response counts, errors included."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_HUB_TIMEOUT_S).close()
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
