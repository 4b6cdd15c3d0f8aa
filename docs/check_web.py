"""Check `lorahub tui --web` in a headless Chromium: `python -m docs.check_web [CHROMIUM]`.

Over the DevTools protocol: the page is refused without the token and served with it, xterm paints
the application, and a key that is pressed arrives and changes what is painted.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

PATIENCE = 120.0
BLANK = 12_000
"""Bytes that a picture of an empty terminal stays below."""
FLAGS = ("--headless=new", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1000,700")
READY = "document.body.classList.contains('-first-byte')"


class Page:
    """One page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.painted = ""

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Ask for something, and take in what the page's own socket brings meanwhile."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=PATIENCE)
            if message.get("method") == "Network.webSocketFrameReceived":
                frame = message["params"]["response"]
                if frame["opcode"] == 2:  # a binary one; the others are the protocol's own
                    self.painted += base64.b64decode(frame["payloadData"]).decode(errors="replace")
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    async def value(self, expression: str) -> object:
        """What JavaScript says of the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until frames have brought something."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await self.value("1")
                await asyncio.sleep(0.1)
        print(f"ok: {what}")

    async def picture(self) -> bytes:
        """The page as PNG, once two pictures in a row are the same."""
        before = b""
        async with asyncio.timeout(PATIENCE):
            while True:
                shot = await self.call("Page.captureScreenshot")
                now = base64.b64decode(shot["data"])
                if now == before:
                    return now
                before = now
                await asyncio.sleep(0.3)


async def check(chromium: str) -> None:
    """Serve an empty catalog, and look at it."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "LORAHUB_HOME": str(Path(folder) / "home")}
        words = [sys.executable, "-m", "lorahub", "tui", "--web"]
        server, address = await _started(words, "open http", env)
        try:
            root = ("--no-sandbox",) if os.geteuid() == 0 else ()
            profile = f"--user-data-dir={folder}/profile"
            browser, where = await _started([chromium, *FLAGS, *root, profile], "ws://", env)
            try:
                await _look(address.split()[1], where.split()[-1])
            finally:
                browser.terminate()
                await browser.wait()
        finally:
            server.terminate()
            await server.wait()


async def _look(address: str, browser: str) -> None:
    place = browser.removeprefix("ws://").partition("/")[0]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{place}/json/list") as answer:
            targets = [t for t in await answer.json() if t["type"] == "page"]
        async with session.ws_connect(targets[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            for domain in ("Page", "Network", "Runtime"):
                await page.call(f"{domain}.enable")
            await page.call("Page.navigate", url=address.partition("?")[0])
            text = ""
            while "lorahub" not in text:
                text = str(await page.value("document.body ? document.body.innerText : ''"))
            _demand("Open the whole address" in text, "refused without the token")
            await page.call("Page.navigate", url=address)
            await page.until(lambda: "The catalog is empty" in page.painted, "the app is sent")
            while not await page.value(READY):
                await asyncio.sleep(0.1)
            await asyncio.sleep(1)  # the page fades its terminal in
            first = await page.picture()
            count = await page.value("document.querySelectorAll('.xterm canvas').length")
            _demand(bool(count), f"xterm draws on {count} canvas")
            _demand(len(first) > BLANK, f"the terminal is painted ({len(first):,} bytes of PNG)")
            page.painted = ""
            await page.value("document.querySelector('.xterm-helper-textarea').focus()")
            for kind in ("keyDown", "keyUp"):
                typed = {"text": "6"} if kind == "keyDown" else {}
                await page.call(
                    "Input.dispatchKeyEvent", type=kind, key="6", code="Digit6",
                    windowsVirtualKeyCode=54, **typed,
                )  # fmt: skip
            await page.until(lambda: "ask the Hub" in page.painted, "a key arrives")
            _demand(await page.picture() != first, "and what is painted changes")


async def _started(
    words: list[str], sign: str, env: dict[str, str]
) -> tuple[asyncio.subprocess.Process, str]:
    """A process, and the line of its stderr that says where it listens."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*words, stderr=pipe, stdout=pipe, env=env)
    assert child.stderr is not None
    async with asyncio.timeout(PATIENCE):
        while line := (await child.stderr.readline()).decode():
            if sign in line:
                return child, line.strip()
    raise RuntimeError(f"{words[0]} ended without an address")


def _demand(holds: bool, what: str) -> None:
    print(f"{'ok' if holds else 'FAILED'}: {what}")
    if not holds:
        raise SystemExit(1)


def main() -> None:
    """Find a browser and check."""
    given = sys.argv[1] if len(sys.argv) > 1 else shutil.which("chromium")
    if given is None:
        raise SystemExit("there is no chromium on the path: name one")
    asyncio.run(check(given))


if __name__ == "__main__":
    main()
