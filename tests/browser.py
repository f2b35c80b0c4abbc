"""Headless Chromium over its debugging pipe: JSON ended by a zero byte, so no client library is needed."""

import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60  # seconds without a word, after which a test fails instead of waiting on


class Tab:
    """One page: what a user does to it, what stands on it, and what it asked the network for."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._unread, self._number, self._session = write, read, b"", 0, None
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url: str) -> None:
        """Load an address anew and wait until it is there."""
        self.call("Page.navigate", url="about:blank")  # else another fragment of the same page would not load it again
        self.call("Page.navigate", url=url)
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            pass

    def run(self, expression: str, *, wait: bool = False) -> Any:
        """The value of a JavaScript expression; with `wait`, of the promise that it gives."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=wait)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key on what has the focus."""
        codes = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "ArrowUp": 38, "Home": 36, "End": 35, "Enter": 13}
        event = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def text(self, selector: str) -> str:
        """What a reader sees in an element."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def width(self, pixels: int) -> None:
        """Make the window as wide as that."""
        self.call("Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=False)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._read], [], [], PATIENCE)
            part = os.read(self._read, 1 << 16) if ready else b""
            assert part, "Chromium closed its pipe, or says nothing any more"
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(line)
        method, params = message.get("method"), message.get("params", {})
        if method in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(params))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """Start Chromium with a fresh profile; it is gone at the end."""
    (read_commands, write), (read, write_answers) = os.pipe(), os.pipe()

    def wire() -> None:  # Chromium reads commands from 3 and answers on 4
        for source, target in ((os.dup(read_commands), 3), (os.dup(write_answers), 4)):
            os.dup2(source, target)

    command = [CHROMIUM, "--headless", "--remote-debugging-pipe", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--no-sandbox"] * (os.geteuid() == 0)  # its sandbox does not run as root
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen(command, preexec_fn=wire, close_fds=False, **quiet)
    os.close(read_commands)
    os.close(write_answers)
    try:
        yield Tab(write, read)
    finally:
        os.close(write)
        os.close(read)
        process.terminate()
        process.wait(timeout=30)
