"""Debian's chromium, headless and without a network, driven through its debugging pipe: opens a
page, runs expressions, takes pictures.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--mute-audio",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-extensions",
    "--remote-debugging-pipe",
)


def executable() -> str | None:
    """Path of chromium, or None."""
    return next(
        (
            found
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (found := shutil.which(name))
        ),
        None,
    )


class Page:
    """One page in a browser of its own.

    Attributes:
      console: errors and warnings of the console, uncaught exceptions, failed requests.
      requested: addresses of everything the page asked for.
    """

    def __init__(self, path: Path, profile: Path, size: tuple[int, int] = (1360, 1100)):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # The browser speaks on descriptors 3 and 4; a shell puts ours there.
        shell = f'exec 3<&{to_read} 4>&{to_write}; exec "$0" "$@"'
        command = [
            "bash",
            "-c",
            shell,
            executable(),
            *FLAGS,
            f"--window-size={size[0]},{size[1]}",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self._session = 0, b"", None
        self.console: list[str] = []
        self.requested: list[str] = []
        target = next(
            t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"
        )["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.send(f"{domain}.enable")
        self.send("Page.navigate", url=path.resolve().as_uri())

    def send(self, method: str, timeout: float = 60, **parameters):
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | (
            {"sessionId": self._session} if self._session else {}
        )
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while True:
            answer = self._receive(end, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def evaluate(self, expression: str):
        """Value of a JavaScript expression (promises are awaited)."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(
                result["exceptionDetails"].get("exception", {}).get("description", str(result))
            )
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 90):
        """The first true value of an expression."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} never became true; console: {self.console}")
            time.sleep(0.2)
        return value

    def screenshot(self, path: Path, selector: str = "") -> Path:
        """A PNG of the window, or of one element."""
        area = {}
        if selector:
            corner = (
                "const r = document.querySelector(%s).getBoundingClientRect(); [r.x + "
                "scrollX, r.y + scrollY, r.width, r.height]"
            )
            box = self.evaluate(f"{{{corner % json.dumps(selector)}}}")
            area = {
                "clip": dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1),
                "captureBeyondViewport": True,
            }
        shot = self.send("Page.captureScreenshot", format="png", **area)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def close(self) -> None:
        """Ends the browser."""
        with contextlib.suppress(Exception):
            self._session = None
            self.send("Browser.close", timeout=5)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        os.close(self._read)
        os.close(self._write)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _receive(self, end: float, what: str) -> dict:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no answer to {what}")
            chunk = os.read(self._read, 1 << 16)
            if not chunk:
                raise RuntimeError(f"the browser ended during {what}")
            self._buffer += chunk
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(raw)
        given = message.get("params", {})
        if message.get("method") == "Runtime.consoleAPICalled" and given["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.console.append(
                f"{given['type']}: "
                + " ".join(str(a.get("value", a.get("description"))) for a in given["args"])
            )
        elif message.get("method") == "Runtime.exceptionThrown":
            exception = given["exceptionDetails"].get("exception", {})
            self.console.append(f"exception: {exception.get('description', given)}")
        elif message.get("method") == "Log.entryAdded" and given["entry"]["level"] in (
            "error",
            "warning",
        ):
            self.console.append(f"{given['entry']['level']}: {given['entry']['text']}")
        elif message.get("method") == "Network.requestWillBeSent":
            self.requested.append(given["request"]["url"])
        return message
