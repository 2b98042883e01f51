"""A tab of a headless Chromium, driven through the DevTools protocol over two pipes: a browser is all that it needs."""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from PIL import Image

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = {
    "ArrowUp": 38,
    "ArrowDown": 40,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "Enter": 13,
    "Escape": 27,
    "F5": 116,
    "Backspace": 8,
}


class Tab:
    """Open until the end of the `with`; `complaints` is what the page's console and scripts have to say."""

    def __init__(self, address: str, profile: Path, width: int = 1280, height: int = 900):
        inner, self._out = _pipe()
        self._in, outer = _pipe()
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars",
                   f"--user-data-dir={profile}", "about:blank"]  # fmt: skip
        nowhere = os.open(os.devnull, os.O_RDWR)
        ours = [(os.POSIX_SPAWN_DUP2, old, new) for old, new in ((nowhere, 1), (nowhere, 2), (inner, 3), (outer, 4))]
        self.process = os.posix_spawn(BROWSER, command, os.environ, file_actions=ours, setpgroup=0)
        for file in (inner, outer, nowhere):
            os.close(file)
        self._read, self._number, self._session = b"", 0, None
        self.complaints: list[str] = []
        tab = self._ask("Target.createTarget", url="about:blank")
        self._session = self._ask("Target.attachToTarget", targetId=tab["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self.resize(width, height)
        self._load("Page.navigate", url=address)

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *error) -> None:
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self._in)
        os.close(self._out)

    def reload(self) -> None:
        self._load("Page.reload")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **size)

    def value(self, expression: str) -> Any:
        """Of JavaScript, in the page."""
        found = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, repeat: bool = False) -> None:
        """A key of the keyboard, down and up again; with `repeat`, one more time of a key that is held."""
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        code = KEYS.get(key) or ord(key.upper())
        self._ask(
            "Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, autoRepeat=repeat, **text
        )
        if not repeat:
            self._ask("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def click(self, expression: str) -> None:
        """With the mouse, on the middle of an element that JavaScript finds."""
        box = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])(({expression}).getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def seen(self) -> Image.Image:
        """The window as it is shown."""
        shot = self._ask("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")

    def _load(self, method: str, **parameters) -> None:
        self._loaded = False
        self._ask(method, **parameters)
        while not self._loaded:
            self._note(self._next())

    def _ask(self, method: str, **parameters) -> dict:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        asked = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _note(self, event: dict) -> None:
        match event["method"]:
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.complaints.append(str(event["params"]["exceptionDetails"]))
            case "Log.entryAdded":
                self.complaints.append(event["params"]["entry"]["text"])

    def _next(self) -> dict:
        end = time.monotonic() + 60
        while b"\0" not in self._read:
            assert select.select([self._in], [], [], end - time.monotonic())[0], "the browser is silent"
            part = os.read(self._in, 1 << 16)
            assert part, "the browser has gone"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)


def _pipe() -> list[int]:
    """Both ends out of the way of 3 and 4, where the browser has its own."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved
