"""Chromium driven over its debugging pipe, without a library: pages, clicks, keys, pictures."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

WAIT_S = 60.0
KEYS = {  # key: (code, virtual key)
    " ": ("Space", 32), "Enter": ("Enter", 13), "ArrowRight": ("ArrowRight", 39), "ArrowLeft": ("ArrowLeft", 37),
    "ArrowDown": ("ArrowDown", 40), "ArrowUp": ("ArrowUp", 38), "Tab": ("Tab", 9),
}  # fmt: skip


def program() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One window."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()  # what they read, what they write
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
        )
        words = [
            "bash",
            "-c",  # dash knows no numbers above 9
            f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}',
            str(program()),
            *flags.split(),
        ]
        self.errors: list[str] = []
        self._process = subprocess.Popen(
            [*words, f"--user-data-dir={folder}", "about:blank"], pass_fds=(ours[0], theirs[1]),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from, self._left, self._number, self._session = ours[1], theirs[0], b"", 0, ""
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    def close(self) -> None:
        self._session = ""
        self._send("Browser.close")
        self._process.wait(WAIT_S)
        os.close(self._to)
        os.close(self._from)

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = os.read(self._from, 1 << 16)
            if not part:
                raise RuntimeError("the browser has gone")
            self._left += part
        line, _, self._left = self._left.partition(b"\0")
        message = json.loads(line)
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(message["params"]["exceptionDetails"])[:500])
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            entry = message["params"]["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}")
        return message

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """The window's size, and the scheme of colours that its user prefers."""
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])

    def goto(self, address: str) -> None:
        """Open a page and wait until it is loaded."""
        self.run("window.old = true")
        self._send("Page.navigate", url=address)
        self.wait("!window.old && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            try:
                if self.run(script):
                    return
            except (AssertionError, RuntimeError):  # between two pages
                pass
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; errors: {self.errors}")

    def click(self, selector: str, shift: bool = False) -> None:
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.run(f"JSON.stringify(document.querySelector({selector!r}).getBoundingClientRect())")
        place = json.loads(box)
        x, y = place["x"] + place["width"] / 2, place["y"] + min(place["height"] / 2, 40)
        for kind in ("mousePressed", "mouseReleased"):
            self._send(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, modifiers=8 * shift
            )

    def key(self, key: str, shift: bool = False) -> None:
        code, number = KEYS.get(key, (f"Key{key.upper()}", ord(key.upper()[0])))
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            given = text if kind == "keyDown" else {}
            self._send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number,
                modifiers=8 * shift, **given,
            )  # fmt: skip

    def picture(self, path: Path, whole: bool = False) -> None:
        shot = self._send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
