"""Debian's Chromium without a window, steered through its DevTools protocol over pipes: no port, no library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    # Tests run in containers, also as root, where its sandbox cannot start; it opens only pages of the tests.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    # Not even the browser itself reaches another machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# It reads commands at file descriptor 3 and writes answers to 4.
_START = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 103); os.dup2(w, 104); os.dup2(103, 3); \
os.dup2(104, 4); os.closerange(5, 105); os.execv(sys.argv[3], sys.argv[3:])"


class Connection:
    """Commands to a browser, and their answers."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._received, self._last_id = b"", 0

    def call(self, method: str, session: str | None = None, within_s: float = 30, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol, of the browser itself or of the page of a session."""
        self._last_id += 1
        command = {"id": self._last_id, "method": method, "params": parameters}
        if session is not None:
            command["sessionId"] = session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        end_s = time.monotonic() + within_s
        while True:
            answer = json.loads(self._next_message(end_s))
            if answer.get("id") == self._last_id:  # everything else is an event
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next_message(self, end_s: float) -> bytes:
        while b"\0" not in self._received:
            readable = select.select([self._answers], [], [], max(end_s - time.monotonic(), 0))[0]
            assert readable, "the browser does not answer"
            content = os.read(self._answers, 1 << 20)
            assert content, "the browser ended by itself"
            self._received += content
        message, _, self._received = self._received.partition(b"\0")
        return message


class Page:
    """A page, or a frame of one. Every wait has a deadline; if it passes, the test fails with what the page shows."""

    def __init__(self, connection: Connection, target: str) -> None:
        self._connection = connection
        self._session = connection.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str) -> None:
        """Open a page; returns before it is complete."""
        # Another part behind the # alone would not load the page again.
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in JavaScript."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self) -> str:
        """The text that the page shows."""
        return self.evaluate("document.body ? document.body.innerText : ''")

    def wait_for(self, *texts: str, within_s: float = 30) -> str:
        """Wait until the page shows all of these texts; returns everything that it shows."""
        end_s = time.monotonic() + within_s
        while lacking := [text for text in texts if text not in (shown := self.text())]:
            assert time.monotonic() < end_s, f"the page lacks {lacking}; it shows: {shown}"
            time.sleep(0.1)
        return shown

    def wait_until(self, condition: str, within_s: float = 30) -> None:
        """Wait until an expression in JavaScript is true."""
        end_s = time.monotonic() + within_s
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end_s, f"not true: {condition}; the page shows: {self.text()}"
            time.sleep(0.1)

    def frame(self, scheme: str, within_s: float = 30) -> Page:
        """The frame in the page that runs apart from it, as those do that a page does not trust."""
        end_s = time.monotonic() + within_s
        while not (frames := targets_of(self._connection, "iframe", scheme)):
            assert time.monotonic() < end_s, f"the page has no such frame; it shows: {self.text()}"
            time.sleep(0.1)
        return Page(self._connection, frames[0])

    def screenshot(self) -> bytes:
        """The visible part of the page, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._connection.call(method, self._session, **parameters)


def targets_of(connection: Connection, kind: str, scheme: str) -> list[str]:
    """The ids of what is open in the browser."""
    targets = connection.call("Target.getTargets")["targetInfos"]
    return [found["targetId"] for found in targets if found["type"] == kind and found["url"].startswith(f"{scheme}:")]


@contextmanager
def browsing(profile: Path, width_px: int = 1800, height_px: int = 1200) -> Iterator[Page]:
    """Start Chromium with a new profile in a folder, and end it with its children; skips the test if there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    command_end, commands = os.pipe()
    answers, answer_end = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", _START, str(command_end), str(answer_end)),
            *(program, *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width_px},{height_px}", "about:blank"),
        ],
        pass_fds=(command_end, answer_end),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(command_end)
    os.close(answer_end)
    try:
        connection = Connection(commands, answers)
        end_s = time.monotonic() + 30
        while not (pages := targets_of(connection, "page", "about")):
            assert time.monotonic() < end_s, "the browser opens no page"
            time.sleep(0.1)
        yield Page(connection, pages[0])
        connection.call("Browser.close")
    finally:
        os.close(commands)  # it ends when nobody can command it any more
        os.close(answers)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
