"""The terminal UI over 10,000 adapters: first paint, key to paint while a merge runs, memory."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import sys
import tempfile
import termios
import time
from dataclasses import replace
from pathlib import Path

from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.workspace import Workspace
from store import Catalog
from store.adapters import insert_rows
from tests.conftest import write_adapter
from tui.jobs import Jobs

COUNT = 10_000
STARTS = 5
KEYS = 300
BEATS = {0.03: "held down", 0.25: "one by one, details painted in between"}
ROWS, COLUMNS = 36, 120


class Screen:
    """The application in a pseudo-terminal of its own."""

    def __init__(self, home: Path) -> None:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env |= {"LORAHUB_HOME": str(home), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.started = time.perf_counter()
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-m", "lorahub"], env)
        size = struct.pack("HHHH", ROWS, COLUMNS, 0, 0)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, size)

    def until(self, text: str, seconds: float = 30) -> float:
        """Wait until the application paints a text; the time when it did."""
        seen, end = b"", time.perf_counter() + seconds
        while text.encode() not in seen:
            if time.perf_counter() > end:
                raise TimeoutError(f"{text} was not painted")
            if select.select([self.terminal], [], [], 0.1)[0]:
                seen = seen[-4096:] + os.read(self.terminal, 1 << 16)
        return time.perf_counter()

    def drain(self, seconds: float) -> None:
        """Take what is painted meanwhile."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if select.select([self.terminal], [], [], left)[0]:
                os.read(self.terminal, 1 << 16)

    def press(self, key: str) -> float:
        """Send a key; the time when it was sent."""
        now = time.perf_counter()
        os.write(self.terminal, key.encode())
        return now

    def memory(self) -> float:
        """Largest resident memory so far, in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1000

    def cpu(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        _fill(home)
        paints, busy = [], []
        for _ in range(STARTS):
            screen = Screen(home)
            paints.append(screen.until("adapter-00000") - screen.started)
            busy.append(screen.cpu())
            screen.close()
        paint, work = statistics.median(paints[1:]), statistics.median(busy[1:])
        print(f"first paint, cold process: {paint:.3f} s wall, {work:.3f} s CPU")
        jobs, name = _merge(home, Path(folder))
        screen = Screen(home)
        screen.until("adapter-00000")
        events = jobs.folder / name / "events.jsonl"
        while not (events.is_file() and "advance" in events.read_text()):
            screen.drain(0.1)
        at = 0
        for beat, what in BEATS.items():
            waits, before = [], screen.cpu()
            for _ in range(KEYS):
                at += 1
                sent = screen.press("j")
                waits.append(screen.until(f"adapter-{at:05d}") - sent)
                screen.drain(beat)
            work = (screen.cpu() - before) / KEYS
            (merge,) = jobs.poll()
            waits.sort()
            p50, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
            print(
                f"key to paint, {what}, merge {merge.state}: median {p50 * 1000:.1f} ms, "
                f"p99 {p99 * 1000:.1f} ms wall; {work * 1000:.1f} ms CPU a key; "
                f"load {os.getloadavg()[0]:.1f}"
            )
        print(f"memory: {screen.memory():.0f} MB")
        screen.close()
        jobs.stop_all()


def _fill(home: Path) -> None:
    """A catalog of 10,000 adapters; those that the cursor comes to have their modules."""
    example = Path(__file__).parent.parent / "examples" / "adapters" / "packages"
    info = formats.inspect(example)
    bare = replace(info, modules=())
    with Catalog.open(home / "catalog.db") as catalog, catalog._write() as connection:
        for i in range(COUNT):
            one = info if i <= KEYS * len(BEATS) else bare
            origin = Origin(Source.FOLDER, example)
            insert_rows(connection, Adapter(f"adapter-{i:05d}", origin, one))


def _merge(home: Path, folder: Path) -> tuple[Jobs, str]:
    """A long merge, which the application starts when it opens."""
    modules = {f"layers.{i}.q": (4096, 4096, 64) for i in range(96)}
    with Workspace.open(home) as workspace:
        for seed, name in enumerate(("one", "other")):
            workspace.pull([str(write_adapter(folder / name, modules, seed=seed))])
    words = ["merge", "one", "other", "--method", "ties", "--workers", "1", "--name", "long"]
    jobs = Jobs(home)
    return jobs, jobs.submit([*words, "--events", "jsonl"], "merge long")


if __name__ == "__main__":
    main()
