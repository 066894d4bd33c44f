"""A headless Chromium driven through its debugging pipe: what it drew, said and asked for."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"
)

PATIENCE = 300.0
"""Seconds to wait for an answer: tests share their cores."""

DRAWN = """
(async () => {
  const figures = [...document.querySelectorAll('.figure')];
  const faults = [];
  const outline = path => (path.getAttribute('d') || '').length > 8;
  const picture = image =>
    (image.getAttribute('href') || image.getAttribute('xlink:href') || '').length > 200;
  for (const [k, box] of figures.entries()) {
    const plot = box.querySelector('.js-plotly-plot');
    if (!plot || !plot._fullData) { faults.push(`figure ${k + 1} was not drawn`); continue; }
    const shown = plot._fullData.filter(trace => trace.visible === true);
    if (!shown.length) faults.push(`${plot.id} has no trace`);
    const flat = shown.filter(trace => trace.type !== 'scatter3d').length;
    const lines = [...plot.querySelectorAll('.scatterlayer .trace')]
      .filter(trace => [...trace.querySelectorAll('path')].some(outline));
    const maps = [...plot.querySelectorAll('.heatmaplayer image')].filter(picture);
    const drawn = lines.length + maps.length;
    if (drawn < flat) faults.push(`${plot.id} drew ${drawn} of ${flat} traces`);
    if (shown.length === flat) continue;
    const scene = new Image();
    scene.src = await plot._fullLayout.scene._scene.toImage('png');
    await scene.decode();
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [scene.width, scene.height];
    const pen = canvas.getContext('2d', {willReadFrequently: true});
    pen.drawImage(scene, 0, 0);
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = new Set(new Uint32Array(pixels.buffer));
    if (colours.size < 20) faults.push(`${plot.id} is blank in three dimensions`);
  }
  return {figures: figures.length, faults: faults};
})()
"""
"""What is wrong with the figures of a page: traces without a mark, scenes of few colours."""


class Browser:
    """One page at a time; the network resolves no name.

    Attributes:
        complaints: Exceptions, and what the console holds of level warning or error.
        requests: Addresses that the page asked for, itself not counted.
    """

    def __init__(self, profile: Path, *, width: int = 1280, height: int = 900) -> None:
        assert CHROMIUM is not None
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--enable-unsafe-swiftshader",
            "--no-first-run", "--disable-extensions", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        # The pipe has to be at file descriptors 3 and 4.
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.size = (width, height)
        self._buffer, self._last, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        width, height = self.size
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)
        os.close(self._read)
        os.close(self._write)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a command of the DevTools protocol."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self._read], [], [], left)[0], "the browser does not answer"
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser is gone"
            self._buffer += piece
        first, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(first)

    def open(self, path: Path) -> None:
        """Load a file and wait until it has run."""
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive())
        # Two frames later everything has been painted.
        self.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")

    def evaluate(self, script: str) -> Any:
        """Return what a script gives, once its promise is kept."""
        answer = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @property
    def complaints(self) -> list[str]:
        found = []
        for event in self.events:
            match event.get("method"), event.get("params", {}):
                case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                    found.append(f"{details['text']} {details.get('exception')}")
                case "Runtime.consoleAPICalled", {"type": "error" | "warning" as kind, "args": a}:
                    found.append(f"{kind}: {[x.get('value') for x in a]}")
                case "Log.entryAdded", {"entry": {"level": "error" | "warning" as kind} as entry}:
                    # What a software renderer says of its own speed is no fault of the page.
                    if "GL Driver Message" not in entry["text"]:
                        found.append(f"{kind}: {entry['text']}")
        return found

    @property
    def requests(self) -> list[str]:
        sent = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [s["request"]["url"] for s in sent if s.get("type") != "Document"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))
