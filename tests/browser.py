"""A headless Chromium for tests, driven over its debugging pipe: no driver, no port, no network.

Chromium reads commands from descriptor 3 and answers on 4, each a JSON text that ends in NUL
(``--remote-debugging-pipe``, the DevTools protocol).
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_S = 60.0


def find() -> str | None:
    """The path of an installed Chromium, or None."""
    return next((p for name in ("chromium", "google-chrome", "chromium-browser") if (p := shutil.which(name))), None)


class Browser:
    """One page in one fresh browser; ``events`` is everything that it reported."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        self.events: list[dict[str, Any]] = []
        self._profile = tempfile.mkdtemp(prefix="edgekit-browser-")
        to_read, self._write = _high_pipe()
        self._read, to_write = _high_pipe()

        def wire() -> None:
            os.dup2(to_read, 3)
            os.dup2(to_write, 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        flags += ["--no-first-run", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"]
        self._process = subprocess.Popen(
            [str(find()), *flags, f"--user-data-dir={self._profile}", f"--window-size={width},{height}"],
            preexec_fn=wire,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._rest = b""
        self._count = 0
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + LIMIT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            if not chunk:
                raise RuntimeError("the browser does not answer")
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(text))

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self.eval("document.readyState") != "complete" or self.eval("location.href") == "about:blank":
            time.sleep(0.02)

    def eval(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def look(self, *, width: int, dark: bool = False, media: str = "", phone: bool = False) -> None:
        """Choose the width in pixels, light or dark, and ``print`` for paper."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def click(self, x: float, y: float) -> None:
        """Move the mouse there and press."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name: str) -> None:
        """Press a key: ``Tab``, ``Enter``, ``ArrowRight`` …"""
        code = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37, "Escape": 27}[name]
        text = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **text)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=self._whole())
        path.write_bytes(base64.b64decode(shot["data"]))

    def _whole(self) -> dict[str, float]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16_000), "scale": 1}

    def pdf(self) -> bytes:
        """The page as it would be printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def complaints(self) -> list[str]:
        """What the console said: errors, warnings, exceptions, policy violations."""
        self.eval("0")
        said = []
        for event in self.events:
            parameters = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                said.append(str(parameters["exceptionDetails"]))
            elif event.get("method") == "Log.entryAdded":
                said.append(parameters["entry"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled":
                said.append(str(parameters["args"]))
        return said

    def requests(self) -> list[str]:
        """The addresses that the page asked for."""
        self.eval("0")
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]


def _high_pipe() -> tuple[int, int]:
    """A pipe whose child's end lies above 9, so that it can't collide with descriptors 3 and 4."""
    read, write = os.pipe()
    ends = []
    for end in (read, write):
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]
