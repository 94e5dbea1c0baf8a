"""A local Ray that only its user can reach: its files, its token and its ports.

By itself, Ray opens its session folder to all users, writes its token so that all may read it, and listens on every
network.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray._private import ray_constants

from scale_ray.errors import UserError
from scale_ray.files.import_path import without_empty_entries

# Ray's sockets are in FOLDER/ray/session_DATE_TIME_PROCESS/sockets, and a socket's path has at most 107 characters
# (103 on macOS).
_MAX_FOLDER_CHARACTERS = 35
_LOOPBACK_ONLY = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}

_log = logging.getLogger(__name__)


@contextmanager
def private_ray() -> Iterator[None]:
    """Within the context, a Ray that starts is private. At the end, Ray must have stopped: its folder is removed.

    After an error, the folder with Ray's logs is kept, and a note of the exception names it.
    """
    create_token()
    folder = _private_folder()
    pythonpath = without_empty_entries(os.environ.get("PYTHONPATH", ""))
    try:
        # Ray adds a folder of its own to RAY_TMPDIR, and opens that one to all users.
        with _environment({**_LOOPBACK_ONLY, "RAY_TMPDIR": folder, "PYTHONPATH": pythonpath}), _one_machine():
            yield
    except Exception as error:
        error.add_note(f"The logs of Ray are in {folder}.")
        raise
    except BaseException:  # stopped, by Ctrl-C for example
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _one_machine() -> Iterator[None]:
    """Let Ray use and listen on the loopback address only, as it does by default on systems other than Linux.

    An address of 127.0.0.1 given to Ray would be replaced by that of the network. Ray has read the variable when it was
    imported; the processes that it starts will read it.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _private_folder() -> str:
    """A new folder that only this user can enter, with a path short enough for sockets."""
    chosen = os.environ.get("RAY_TMPDIR")
    if chosen:
        os.makedirs(chosen, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="scale-ray-", dir=chosen)
    if not chosen and len(folder) > _MAX_FOLDER_CHARACTERS:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="scale-ray-", dir="/tmp")
    return folder


def create_token() -> None:
    """Create Ray's token where Ray will look for it, if there is none, for this user only.

    Raises
    ------
    UserError
        If the token cannot be written.
    """
    if not _uses_token() or os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = _default_token_path()
    if path.exists():
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # of mode 0600
            file.write(secrets.token_hex(32))
            file.flush()
            # Whole at once; of two processes that start together, one creates it and both use it.
            with suppress(FileExistsError):
                os.link(file.name, path)
    except OSError as error:
        raise UserError(
            f"expected to write Ray's token to {path}, found: {error.strerror}; RAY_AUTH_TOKEN_PATH names another file"
        ) from error


def protect_token() -> None:
    """Take the rights to read Ray's token in the home folder from other users; report one elsewhere that they can read.

    Whoever has the token can run any code as the user of the cluster.
    """
    if not _uses_token() or os.environ.get("RAY_AUTH_TOKEN"):
        return
    elsewhere = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(elsewhere) if elsewhere else _default_token_path()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if elsewhere and mode & 0o007:
            _log.warning("other users of this machine can read %s, the token of Ray (chmod 600)", path)
        elif not elsewhere and mode & 0o077:
            path.chmod(mode & 0o700)
            _log.warning(
                "other users of this machine could read %s, the token of Ray; now they cannot. If one of them may have "
                "read it: stop Ray, delete the file and start again",
                path,
            )
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("other users of this machine may read %s, the token of Ray: %s", path, error.strerror)


def _uses_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def _default_token_path() -> Path:
    return Path.home() / ".ray" / "auth_token"


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set these environment variables for the duration of the context, an empty one not at all."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def _set(values: dict[str, str] | dict[str, str | None]) -> None:
    for name, value in values.items():
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
