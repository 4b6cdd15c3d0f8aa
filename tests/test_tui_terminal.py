"""The application in a real terminal, and as a web page: keys sent, the screen captured."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorahub.cli.main import app as commands
from lorahub.workspace import Workspace
from tests.conftest import EXAMPLES, ROOT, write_adapter
from tests.waiting import PATIENCE, until
from tui.jobs import Jobs

WALK = ROOT / "examples" / "walkthrough.txt"
EDITOR = "sed -i s/svd/cat/"


@pytest.fixture
def terminal(home: Path) -> Iterator[Tmux]:
    """A tmux server of our own with one terminal of 120 by 36."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    with Workspace.open(home) as workspace:
        workspace.pull([str(EXAMPLES / n) for n in ("languages", "packages")])
    tmux = Tmux(home)
    yield tmux
    tmux("kill-server", check=False)


class Tmux:
    """A terminal multiplexer that types and reads."""

    def __init__(self, home: Path) -> None:
        self._socket = f"lorahub-{uuid.uuid4().hex[:8]}"
        env = ["-e", f"LORAHUB_HOME={home}", "-e", "OMP_NUM_THREADS=1", "-e", f"EDITOR={EDITOR}"]
        words = [sys.executable, "-m", "lorahub"]
        self("-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "36", *env, *words)

    def __call__(self, *words: str, check: bool = True) -> str:
        return subprocess.run(
            ["tmux", "-L", self._socket, *words],
            check=check, capture_output=True, text=True, cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}},
        ).stdout  # fmt: skip

    def press(self, *keys: str) -> None:
        self("send-keys", *keys)

    @property
    def screen(self) -> str:
        return self("capture-pane", "-p", check=False)

    def until(self, text: str, *, there: bool = True) -> None:
        until(lambda: (text in self.screen) is there, lambda: f"'{text}'?\n{self.screen}")


def test_walkthrough(terminal: Tmux, home: Path) -> None:
    """The recorded walk: every line sends keys, or waits for what they bring or take away."""
    for line in WALK.read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "keys":
            terminal.press(*rest.split())
        elif kind == "type":
            terminal.press("-l", rest)
        elif kind in {"see", "lose"}:
            terminal.until(rest, there=kind == "see")
    with Workspace.open(home) as workspace:
        assert workspace.get("walked").method == "svd"


def test_killed_terminal_leaves_a_state_to_come_back_to(terminal: Tmux, home: Path) -> None:
    terminal.until("languages")
    terminal.press("Space")
    terminal.until("Basket 1: languages")
    terminal("kill-server")
    again = Tmux(home)
    try:
        again.until("Basket 1: languages")
        again.press("q")
    finally:
        again("kill-server", check=False)


def test_editor_on_the_recipe_and_back(terminal: Tmux) -> None:
    terminal.until("languages")
    terminal.press("Space")
    terminal.until("Basket 1: languages")
    terminal.press("c")
    terminal.until("--method svd")
    terminal.press("C-e")
    terminal.until("--method cat")
    terminal.press("u")
    terminal.until("--method svd")


def test_killed_terminal_leaves_a_merge_that_goes_on_and_is_repeated(
    terminal: Tmux, home: Path
) -> None:
    modules = {f"layers.{i}.q": (1024, 1024, 8) for i in range(600)}
    with Workspace.open(home) as workspace:
        for seed, name in enumerate(("one", "other")):
            workspace.pull([str(write_adapter(home.parent / name, modules, seed=seed))])
    jobs = Jobs(home)
    words = ["merge", "one", "other", "--method", "ties", "--name", "x", "--events", "jsonl"]
    jobs.submit(words, "merge x")
    terminal.until("3 Run (1)")
    terminal.press("3")
    terminal.until("of 600 modules")
    application = int(terminal("display", "-p", "#{pane_pid}"))
    os.kill(int(terminal("display", "-p", "#{pid}")), signal.SIGKILL)
    until(lambda: not Path(f"/proc/{application}").exists())
    (job,) = jobs.poll()
    assert job.state == "running"
    assert job.pid is not None
    os.killpg(job.pid, signal.SIGKILL)
    until(lambda: not jobs.poll()[0].active)
    again = Tmux(home)
    try:
        again.until("3 Run")
        # What is pressed before a screen is there goes to the one before it.
        again.press("4")
        again.until("[4 History")
        again.until("interrupted")
        again.press("3")
        again.until("[3 Run")
        again.until("interrupted")
        again.press("r")
        again.until("of 600 modules")
        again.press("x")
        again.until("0 active jobs")
    finally:
        again("kill-server", check=False)
    assert not (home / "adapters" / "x").exists()


def test_plain_lorahub_in_a_pipe_is_help(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorahub"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "tui" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "lorahub", "tui"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr


def test_other_systems_are_told_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorahub.cli.terminal.find_spec", lambda name: None)
    done = CliRunner().invoke(commands, ["tui"])
    assert done.exit_code == 2
    assert "POSIX" in done.stderr
    assert CliRunner().invoke(commands, []).exit_code == 2


def test_web_page_needs_the_token(home: Path) -> None:
    pytest.importorskip("textual_serve")
    child = subprocess.Popen(
        [sys.executable, "-m", "lorahub", "tui", "--web"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    try:
        assert child.stderr is not None
        line = child.stderr.readline()
        assert "http://127.0.0.1:" in line, line
        address = line.split()[1]
        place, _, token = address.removeprefix("http://").partition("/?token=")
        status, _, _ = _get(place, "/")
        assert status == 403
        status, _, _ = _get(place, "/?token=wrong")
        assert status == 403
        status, page, cookie = _get(place, f"/?token={token}")
        assert status == 200
        assert "lorahub" in page
        assert _get(place, "/ws")[0] == 403
        assert _get(place, "/static/js/textual.js", cookie)[0] == 200
        assert _get(place, "/static/js/textual.js")[0] == 403
        assert b"The catalog is empty" in asyncio.run(_painted(place, cookie))
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=PATIENCE)


async def _painted(place: str, cookie: str) -> bytes:
    """What a browser's terminal is sent until the first screen is there."""
    import aiohttp

    seen, address = b"", f"http://{place}/ws?width=100&height=30"
    async with (
        aiohttp.ClientSession(headers={"Cookie": cookie}) as session,
        session.ws_connect(address) as socket,
        asyncio.timeout(PATIENCE),
    ):
        while b"The catalog is empty" not in seen:
            message = await socket.receive()
            assert message.type in {aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT}, message
            seen += message.data if isinstance(message.data, bytes) else message.data.encode()
    return seen


def _connects(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    return True


def _get(place: str, path: str, cookie: str = "") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(place, timeout=PATIENCE)
    until(lambda: _connects(connection))  # the address is printed just before the server listens
    try:
        connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
        answer = connection.getresponse()
        given = (answer.getheader("Set-Cookie") or "").partition(";")[0]
        return answer.status, answer.read().decode(errors="replace"), given
    finally:
        connection.close()
