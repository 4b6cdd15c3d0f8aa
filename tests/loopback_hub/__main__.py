"""Run the hub in a process of its own: `python -m tests.loopback_hub --user ann:hf_token`.

Prints its endpoint as one line, then serves until it is terminated.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from .server import LoopbackHub


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.loopback_hub", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seed-folder", type=Path, help="holds NAMESPACE/NAME/files")
    parser.add_argument("--user", action="append", default=[], help="NAME:TOKEN[:read]")
    parser.add_argument("--private", action="append", default=[], help="a repo of the seeds")
    parser.add_argument("--gated", action="append", default=[], help="a repo of the seeds")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop at its end of file")
    options = parser.parse_args()

    hub = LoopbackHub(options.port)
    for user in options.user:
        name, token, *role = user.split(":")
        hub.add_user(name, token, role="read" if role == ["read"] else "write")
    if options.seed_folder is not None:
        for folder in sorted(options.seed_folder.glob("*/*/")):
            hub.add_repo(folder.relative_to(options.seed_folder).as_posix(), folder=folder)
    for repo_id in options.private:
        hub.repo(repo_id).private = True
    for repo_id in options.gated:
        hub.repo(repo_id).gated = "manual"

    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with hub:
        sys.stdout.write(f"{hub.endpoint}\n")
        sys.stdout.flush()
        if options.exit_with_stdin:
            sys.stdin.read()
        else:
            done.wait()


if __name__ == "__main__":
    main()
