"""A Ray cluster for the tests: one machine, several workers, its own folder, gone afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Nobody is told of it, nothing of it outlives it, and warnings of it are nobody's errors.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def cluster(workers: int) -> Iterator[tuple[str, Path]]:
    """Run a cluster of one machine; yields its address and the folder with its logs."""
    port = _free_port()
    # Its sockets' paths may have 107 characters at most, which pytest's own folders exceed.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as name:
        words = [
            "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false",
            f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={name}",
            f"--num-cpus={workers}", f"--num-gpus={workers}", "--object-store-memory=80000000",
        ]  # fmt: skip
        with (Path(name) / "out").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words],
                stdout=log, stderr=log, cwd=name, env=os.environ | SETTINGS,
                start_new_session=True,
            )  # fmt: skip
        try:
            address = f"127.0.0.1:{port}"
            _wait(Path(name) / "out", process)
            yield address, Path(name)
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    """A port where nobody listens, and which the system gives to nobody who asks for any."""
    for port in range(20_000 + os.getpid() % 10_000, 32_768):  # Linux gives those from 32768 on
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _wait(log: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if "Ray runtime started" in log.read_text():
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"the cluster does not start: {log.read_text()}")
