"""Send a command to a cluster as a job, and follow its log as if it ran here.

The job gets the code of this package and the module of a custom backbone, nothing else: no library is installed, and
videos, stores, runs and weights are where its arguments say.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import re
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import scale_ray
from scale_ray.console import RESULT_FOLLOWS, Console, show
from scale_ray.distributed.job_versions import write_versions
from scale_ray.errors import RunFailed, UserError, first_line
from scale_ray.files.module_files import is_installed

# How long `ray job stop` lets a job save a checkpoint before it is killed; Ray's own default is 3 s.
_STOP_WAIT_S = 60
# How long the connection to a cluster may be lost before the command gives up following.
_MAX_LOST_S = 60.0
_MAX_START_S = 60.0
_MAX_MODULE_BYTES = 50 * 2**20
# What Ray itself writes into the log of a job.
_OF_RAY = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+(INFO|WARNING) job_manager\.py|Running entrypoint for job ")
_STOPPED_CODE = 130


def run_job(address: str, arguments: Sequence[str], modules: Sequence[str], console: Console) -> int:
    """Submit `scale-ray ARGUMENTS` to the job server at `address`, follow its log, and return its exit code.

    The job also gets the `modules` here, or their packages, unless they are installed. Its messages and progress go to
    standard error, its result to standard output. Ctrl-C ends the following, not the job.

    Raises
    ------
    UserError
        If the server does not answer, has another version of Ray or refuses the job.
    RunFailed
        If the connection to the cluster is lost.
    """
    client = _connected(address)
    with _packed(modules) as folder:
        job_id = _submitted(client, shlex.join(["python", "-m", "scale_ray", "--job", *arguments]), folder)
    server = client.get_address()
    console.say(f"job {job_id} on {server}")
    log = _Log(console)
    try:
        asyncio.run(_follow(client, job_id, log))
        return _exit_code(_ended(client, job_id), log, console)
    except KeyboardInterrupt:
        console.say(
            f"The job continues. Follow it: ray job logs --follow --address {server} {job_id}; "
            f"stop it: ray job stop --address {server} {job_id}"
        )
        return _STOPPED_CODE
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        raise RunFailed(
            f"the connection to {server} was lost ({first_line(error)}). If the job continues, this follows it: "
            f"ray job logs --follow --address {server} {job_id}"
        ) from error


def _connected(address: str) -> JobSubmissionClient:
    """The client of the job server at an address, which has the same Ray as here up to the patch level.

    Raises
    ------
    UserError
        If it does not answer, refuses the request, or has another Ray.
    """
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address)
        answer = client._do_request("GET", "/api/version")
    except (AuthenticationError, RuntimeError, OSError, ValueError) as error:
        text = str(error)
        if isinstance(error, AuthenticationError) or "Authentication" in text:
            raise UserError(
                f"address: expected a token that {address} takes, found "
                f"{'another one' if 'failed' in text.lower() else 'none'}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
                "or RAY_AUTH_TOKEN_PATH"
            ) from error
        raise UserError(
            f"address: expected Ray's job server at {address}, found none that answers ({first_line(error)})"
        ) from error
    there = str(answer.json().get("ray_version", "unknown")) if answer.status_code == 200 else "unknown"
    if _release(there) != _release(ray.__version__):
        raise UserError(
            f"address: expected Ray {ray.__version__} at {address} as here, up to the patch level, found {there}"
        )
    return client


def _submitted(client: JobSubmissionClient, entrypoint: str, folder: Path) -> str:
    """The id of the submitted job. A head that has just started takes no jobs for some seconds.

    Raises
    ------
    UserError
        If the cluster does not take the job.
    """
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
    end_s = time.monotonic() + _MAX_START_S
    while True:
        try:
            return client.submit_job(
                entrypoint=entrypoint, runtime_env={"working_dir": str(folder), "env_vars": environment}
            )
        except (RuntimeError, OSError) as error:
            if "No available agent" not in str(error) or time.monotonic() > end_s:
                raise UserError(
                    f"address: expected {client.get_address()} to take the job, found: {first_line(error)}"
                ) from error
        time.sleep(1)


def _release(version: str) -> list[str]:
    return version.split(".")[:2]


@contextmanager
def _packed(modules: Sequence[str]) -> Iterator[Path]:
    """A folder with what the job needs from here.

    Raises
    ------
    UserError
        If a module does not exist, or is too large to travel.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "job")
        package = Path(scale_ray.__file__).parent
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        write_versions(folder)
        # Ray deletes a package some time after its last job: one that is still there may be gone when the job begins.
        (folder / "submission").write_text(uuid.uuid4().hex)
        for name in {module.partition(".")[0] for module in modules}:
            _copy_module(name, folder)
        yield folder


def _copy_module(name: str, folder: Path) -> None:
    """Copy a module or package of the user's; an installed one must be installed on the cluster as well."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    places = [*(spec.submodule_search_locations or []), spec.origin] if spec else []
    if not places or places[0] is None:
        raise UserError(f"expected a module {name!r} here to send it with the job, found none")
    source = Path(places[0])
    if is_installed(str(source.parent)):
        return
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    if sum(path.stat().st_size for path in files) > _MAX_MODULE_BYTES:
        raise UserError(
            f"expected at most {_MAX_MODULE_BYTES >> 20} MiB in {source} to send it with the job, found "
            "more; install it on the cluster"
        )
    if source.is_file():
        shutil.copy(source, folder)
    else:
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))


class _Log:
    """Shows the lines of a job's log: what it reports, then its result."""

    def __init__(self, console: Console) -> None:
        self._console, self._rest, self._is_result = console, "", False
        self.num_characters = 0

    def add(self, text: str) -> None:
        """Take some more of the log."""
        self.num_characters += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._show(line)

    def end(self) -> None:
        """Show what is left."""
        if self._rest:
            self._show(self._rest)
        self._rest = ""

    def _show(self, line: str) -> None:
        if self._is_result:
            show(line)
        elif line == RESULT_FOLLOWS:
            self._is_result = True
        elif not _OF_RAY.match(line):
            # Errors are shown also if the command is quiet: then the job reports nothing else.
            show(line, error=True)


async def _follow(client: JobSubmissionClient, job_id: str, log: _Log) -> None:
    """Show the log until the job ends; a connection that breaks is made again, and continues where it broke."""
    lost_s: float | None = None
    while True:
        skipped, known = 0, log.num_characters
        try:
            async for text in client.tail_job_logs(job_id):
                # A new connection begins with the first line.
                new = text[max(known - skipped, 0) :]
                skipped += len(text)
                log.add(new)
                lost_s = None
            if client.get_job_status(job_id).is_terminal():
                return
        except (RuntimeError, OSError, aiohttp.ClientError):
            lost_s = lost_s or time.monotonic()
            if time.monotonic() - lost_s > _MAX_LOST_S:
                raise
        await asyncio.sleep(1)


def _ended(client: JobSubmissionClient, job_id: str, within_s: float = 30.0) -> JobDetails:
    """What is known of a job whose log has ended."""
    end_s = time.monotonic() + within_s
    while True:
        details = client.get_job_info(job_id)
        if details.status.is_terminal() or time.monotonic() > end_s:
            return details
        time.sleep(0.5)


def _exit_code(details: JobDetails, log: _Log, console: Console) -> int:
    log.end()
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        console.say("the job was stopped; the same command resumes it")
        return _STOPPED_CODE
    if details.driver_exit_code is None:
        # It did not begin, or its node died.
        raise RunFailed(f"the job failed: {first_line(Exception(details.message or 'no reason is known'))}")
    return int(details.driver_exit_code) if details.driver_exit_code > 0 else 1
