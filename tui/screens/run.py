"""Run: the jobs that run, wait and have ended; what each of them does now."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from textual.app import ComposeResult
from textual.containers import Vertical

from lorahub.errors import LorahubError
from tui import text
from tui.acting import app_of
from tui.actions import bindings
from tui.job import Job
from tui.screens.room import Room
from tui.widgets.page import Page
from tui.widgets.paged_table import PAGE, Column, PagedTable, Row

COLUMNS = (
    Column("job", 0),
    Column("state", 11, importance=9),
    Column("progress", 22, importance=8),
    Column("since", 8, importance=2),
)
EMPTY = (
    "No jobs.\nA merge (2), a pull (6) or an export (1) becomes one, and goes on\n"
    "while you look elsewhere."
)
MARKS = {"waiting": ".", "running": ">", "paused": "=", "finished": " ", "failed": "!"}


class RunScreen(Room):
    """The jobs of this data folder."""

    scope = "run"
    BINDINGS = bindings("run")
    help = (
        "Merges run one after the other, transfers beside them. Jobs outlive the application: "
        "they are here again when it opens."
    )

    _awaited = ""

    def body(self) -> ComposeResult:
        """The jobs over the one under the cursor."""
        with Vertical():
            yield PagedTable(COLUMNS, id="jobs")
            yield Page(id="job", classes="pane")

    def on_mount(self) -> None:
        """Follow the jobs."""
        self.jobs.empty = EMPTY
        self.jobs.focus()
        self.watch(app_of(self), "running", self._show)

    @property
    def jobs(self) -> PagedTable:
        """The table of jobs."""
        return self.query_one("#jobs", PagedTable)

    @property
    def job(self) -> Job | None:
        """The job under the cursor, as it is now."""
        row = self.jobs.row
        if row is None:
            return None
        return next((j for j in app_of(self).running if j.name == row.value.name), None)

    def command(self) -> str:
        """The job's own command."""
        job = self.job
        return app_of(self).jobs.line(job) if job is not None else "lorahub merge --help"

    def _show(self, jobs: tuple[Job, ...]) -> None:
        before = self.jobs.row
        names = [job.name for job in jobs]
        shown = [row.value.name for _, row in self.jobs.loaded()]
        if shown == names[:PAGE] and self.jobs.count == len(jobs):
            for index, row in enumerate(_rows(jobs[:PAGE])):
                self.jobs.update(index, row)
        else:
            wanted = before.value.name if before is not None else ""
            if self._awaited in names:
                wanted, self._awaited = self._awaited, ""
            cursor = names.index(wanted) if wanted in names else 0
            self.jobs.reset(len(jobs), _rows(jobs[:PAGE]), cursor=cursor)
        self.jobs.border_title = text.plural(sum(j.active for j in jobs), "active job")
        self._describe()

    def on_paged_table_wanted(self, event: PagedTable.Wanted) -> None:
        """Older jobs."""
        jobs = app_of(self).running[event.first : event.first + PAGE]
        self.jobs.put(event.first, _rows(jobs), event.generation)

    def on_paged_table_highlighted(self) -> None:
        """Describe another job."""
        self._describe()
        self.say_command()

    def _describe(self) -> None:
        job = self.job
        page = self.query_one(Page)
        if job is None:
            page.show("")
            return
        jobs = app_of(self).jobs
        more = [("command", jobs.line(job)), ("log", jobs.log(job, 4000))]
        page.show_facts([*_facts(job), *more])

    # Actions

    def why_not(self, name: str) -> str | None:
        """What a job's state allows."""
        job = self.job
        if job is None:
            return "there is no job"
        if name == "cancel" and not job.active:
            return f"it is {job.state} already"
        if name == "pause" and job.state not in {"running", "paused"}:
            return f"it is {job.state}: only a running job can be paused"
        if name in {"again", "forget"} and job.active:
            return f"it is {job.state}: cancel it first (x)"
        return None

    def _with_job(self, deed: Callable[[Job], object]) -> None:
        assert self.job is not None
        try:
            deed(self.job)
        except LorahubError as error:
            app_of(self).complain(error)

    def do_cancel(self) -> None:
        """Stop it, then kill it."""
        self._with_job(app_of(self).jobs.cancel)

    def do_pause(self) -> None:
        """Hold it, or let it go on."""
        self._with_job(app_of(self).jobs.pause)

    def do_again(self) -> None:
        """The same once more; the cursor goes to it."""
        self._with_job(self._start_again)

    def _start_again(self, job: Job) -> None:
        self._awaited = app_of(self).jobs.again(job)

    def do_forget(self) -> None:
        """Off the list."""
        assert self.job is not None
        app_of(self).jobs.forget(self.job)

    def do_copy(self) -> None:
        """Its log, or what it came to."""
        assert self.job is not None
        app_of(self).copy(app_of(self).jobs.log(self.job) or self.job.error or self.job.title)


def _rows(jobs: tuple[Job, ...]) -> list[Row]:
    return [
        Row(
            job,
            (job.title, job.state, _progress(job), _clock(job.submitted)),
            MARKS.get(job.state, "!"),
            dim=not job.active,
        )
        for job in jobs
    ]


def _progress(job: Job) -> str:
    if job.state in {"running", "paused"} and job.total:
        return f"{text.bar(job.share, 10)} {job.share:4.0%} {job.phase}"
    return job.phase if job.active else (job.error or "")


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")


def _facts(job: Job) -> tuple[tuple[str, str], ...]:
    steps = f"{job.done:,} of {job.total:,} {job.unit}" if job.total else ""
    left = (job.total - job.done) / job.rate if job.rate else 0.0
    going = job.state in {"running", "paused"}
    spent = (job.ended or time.time()) - job.started if job.started else 0.0
    result = job.result or {}
    check = (result.get("record") or {}).get("verification") or {}
    return (
        ("job", job.title),
        ("state", job.state + (f", {text.span(spent)}" if job.started else "")),
        ("phase", f"{job.phase}: {steps} {text.bar(job.share, 24)}" if going and steps else ""),
        ("pace", f"{job.rate:.1f} {job.unit}/s, {text.span(left)} left in this phase"
                 if going and job.rate else ""),
        ("now", job.item if going else ""),
        ("error", job.error or ""),
        ("what to do", job.hint or ""),
        *(("warning", w) for w in job.warnings),
        ("result", str(result.get("name") or result.get("folder") or result.get("url") or "")),
        ("folder", str(result.get("folder") or "")),
        ("verified", f"off by {check['worst_error']:.1e} in the worst module, "
                     f"{check['tolerance']:.0e} is allowed" if "worst_error" in check else ""),
        ("kept", ", ".join(f"{k:.1%}" for k in check.get("retained", ()))),
    )  # fmt: skip
