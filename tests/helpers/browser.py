"""A headless Chromium, driven through its own protocol over a pair of pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 300


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    path = find_browser()
    assert path is not None
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
             f"--user-data-dir={profile}", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-extensions"]  # fmt: skip
    # The browser reads from 3 and writes to 4.
    script = f'exec "$0" "$@" 3<&{their_in} 4>&{their_out}'
    process = subprocess.Popen(
        ["bash", "-c", script, path, *flags, "about:blank"],
        pass_fds=(their_in, their_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Browser(our_in, our_out)
    finally:
        os.close(our_out)  # its end
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(our_in)


class Browser:
    """One page of the browser."""

    def __init__(self, reads_from: int, writes_to: int) -> None:
        self._in, self._out = reads_from, writes_to
        self._kept, self._number, self._session = b"", 0, None
        self.requests: list[str] = []
        """Every address that the page asked for."""
        self.console: list[str] = []
        """What it said, and its uncaught errors."""
        self._loaded = ""
        """Which document it shows."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._kept:
            assert select.select([self._in], [], [], PATIENCE_S)[0], "the browser says nothing"
            data = os.read(self._in, 1 << 16)
            assert data, "the browser has ended"
            self._kept += data
        text, _, self._kept = self._kept.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, said: dict[str, Any]) -> None:
        if method == "Page.frameNavigated" and "parentId" not in said["frame"]:
            self._loaded = said["frame"]["loaderId"]
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled":
            self.console.append(str([one.get("value") for one in said["args"]]))
        elif method == "Log.entryAdded":
            self.console.append(said["entry"]["text"])

    def open(self, address: str, width: int = 1300, height: int = 900, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride",
                  width=width, height=height, deviceScaleFactor=1, mobile=False)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        # The answer comes while the page before is still there.
        asked = self.send("Page.navigate", url=address)["loaderId"]
        while self._loaded != asked:
            self._read()
        self.wait("document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, (expression, answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = self.ask(expression)
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"still not true: {expression}; console: {self.console}")

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """(left, top, width, height) of an element, scrolled into view."""
        return tuple(
            self.ask(
                f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
                "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
                "return [b.left, b.top, b.width, b.height]; })()"
            )
        )

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str) -> None:
        left, top, width, height = self.box(selector)
        at = left + width / 2, top + height / 2
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, *at, button="left", clickCount=1)

    def press(self, key: str, **more: Any) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    def choose(self, selector: str, value: str) -> None:
        self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            f"e.value = {json.dumps(value)};"
            "e.dispatchEvent(new Event('input', {bubbles: true}));"
            "e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def picture(self, path: Path, whole: bool = True) -> None:
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
