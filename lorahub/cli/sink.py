"""The one place that prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from lorahub.errors import ExitCode, LorahubError
from lorahub.events import (
    Advanced,
    Event,
    Failed,
    Finished,
    Listener,
    PhaseStarted,
    Warned,
    to_json,
)

ENVELOPE_VERSION = 1


def given(text: str) -> str:
    """Where a result goes; an empty path would be the current folder."""
    if not text.strip():
        raise typer.BadParameter("it is empty")
    return text


def place(text: str) -> Path:
    """As `given`, a path."""
    return Path(given(text))


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Events = Annotated[
    Literal["jsonl"] | None, typer.Option("--events", help="Events as JSON lines on stdout.")
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FOLDER", parser=place, help="Folder of the result."),
]
Name = Annotated[str | None, typer.Option("--name", help="Catalog name of the result.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing result.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only plan.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda[:N], mps.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Threads.")]
Remote = Annotated[
    str | None, typer.Option("--remote", help="Name of a Hub in config.toml: [remotes.NAME].")
]
Endpoint = Annotated[
    str | None, typer.Option("--endpoint", help="Address of a Hub instead of the configured one.")
]
TokenEnv = Annotated[
    str | None, typer.Option("--token-env", help="Environment variable with the Hub token.")
]
Executor = Annotated[
    Literal["here", "processes", "ray"] | None,
    typer.Option("--executor", help="Where to merge: this process, processes, a Ray cluster."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT."),
]


def plain(value: object) -> Any:  # noqa: ANN401 - JSON has no narrower type
    """A value as JSON types."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def print_json(value: object) -> None:
    """A bare JSON value on stdout."""
    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def print_act(command: str, result: object, *, status: str = "ok") -> None:
    """The versioned envelope of commands that change something."""
    print_json(
        {"version": ENVELOPE_VERSION, "command": command, "status": status, "result": plain(result)}
    )


def status(failed: int, total: int) -> str:
    """What became of several objects, as programs are told: ok, partial or error."""
    return "ok" if not failed else "partial" if failed < total else "error"


def answered(
    command: str,
    result: object,
    *,
    as_json: bool,
    events: bool,
    status: str = "ok",
    event: Mapping[str, Any] | None = None,
) -> bool:
    """Print the result of an act for programs: as the last event, or in the envelope.

    Args:
        command: The verb.
        result: What goes into the envelope.
        as_json: Whether it was asked for.
        events: Whether events were.
        status: ok, partial or error.
        event: What the event carries; the result without it.

    Returns:
        False where neither was asked for, so that a reader's table is to come.
    """
    if events:
        print_event(Finished(plain(result) if event is None else event))
    elif as_json:
        print_act(command, result, status=status)
    return events or as_json


def print_text(text: str) -> None:
    """A line of result on stdout."""
    sys.stdout.write(text + "\n")


def unwritten(error: OSError) -> NoReturn:
    """Leave because stdout takes no more: quietly where it was a pipe whose reader is gone."""
    # Python writes what is left once more on its way out.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        note(f"error: the results cannot be written to stdout ({error.strerror})")
    raise SystemExit(ExitCode.FAILURE)


def note(text: str) -> None:
    """A line for the user on stderr."""
    sys.stderr.write(text + "\n")


def plain_error(error: LorahubError) -> dict[str, str | None]:
    """An error for JSON."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def failure(name: str, error: LorahubError) -> None:
    """One of several that failed, named once, and what to do about it."""
    named = error.message.strip("'").startswith(name.rstrip("/"))
    note(f"error: {error.message if named else f'{name}: {error.message}'}")
    if error.hint:
        note(f"hint: {error.hint}")


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal, tab-separated values with a header line in a pipe."""
    cells = [["-" if c is None or c == "" else str(c) for c in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [[h.upper() for h in headers], *cells]:
            print_text("\t".join(c.replace("\t", " ").replace("\n", " ") for c in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header)
    for row in cells:
        table.add_row(*(Text(c) for c in row))
    Console().print(table)


def print_picture(text: str) -> None:
    """Lines of block characters on a terminal; a pipe gets none."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(
            text, markup=False, highlight=False, no_wrap=True, overflow="ignore", crop=False
        )


def size(count: int) -> str:
    """Bytes for a reader: 1.3 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def fail(error: LorahubError, command: str, *, as_json: bool) -> NoReturn:
    """Print an error and leave with its exit code."""
    if as_json:
        body = {"version": ENVELOPE_VERSION, "command": command, "status": "error"}
        print_json(body | {"error": plain_error(error)})
    note(f"error: {error.message}")
    if error.hint:
        note(f"hint: {error.hint}")
    raise typer.Exit(error.exit_code)


@contextmanager
def errors(command: str, *, as_json: bool = False, events: bool = False) -> Iterator[None]:
    """The one error table: lorahub's errors and Ctrl-C become messages and exit codes.

    What Ctrl-C did is said by `lorahub.__main__`, wherever it came.
    """
    try:
        yield
    except LorahubError as error:
        if events:
            print_event(Failed(error.code, error.message, error.hint))
        fail(error, command, as_json=as_json)
    except KeyboardInterrupt:
        if events:
            print_event(Failed("interrupted", "interrupted by the user", None))
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def print_event(event: Event) -> None:
    """One JSON line on stdout, at once: whoever reads it follows the work."""
    print_text(to_json(event))
    sys.stdout.flush()


@contextmanager
def progress(*, events: bool = False) -> Iterator[Listener]:
    """A listener that shows progress: JSON lines on stdout, or bars on a terminal's stderr."""
    if events:
        yield print_event
        return
    if not sys.stderr.isatty():
        yield _warnings_only
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _bars(bars)


def _bars(bars: Any) -> Callable[[Event], None]:  # noqa: ANN401 - rich is imported lazily
    tasks: dict[str, Any] = {}

    def listen(event: Event) -> None:
        if isinstance(event, PhaseStarted):
            tasks[event.phase] = bars.add_task(event.phase, total=event.total)
        elif isinstance(event, Advanced):
            bars.update(tasks[event.phase], completed=event.done)
        elif isinstance(event, Warned):
            for line in _warning(event):
                bars.console.print(line, markup=False, highlight=False)

    return listen


def _warnings_only(event: Event) -> None:
    if isinstance(event, Warned):
        for line in _warning(event):
            note(line)


def _warning(event: Warned) -> Iterator[str]:
    yield f"warning: {event.message}"
    if event.hint:
        yield f"hint: {event.hint}"
