"""Compose: inputs with weights, a method and its parameters, the plan, the recipe as YAML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import TabbedContent, TabPane, TextArea

from lorahub.errors import LorahubError
from lorahub.methods.registry import get
from lorahub.output import check_name
from tui import figures, inputs, text
from tui.acting import app_of
from tui.actions import bindings
from tui.draft import Draft, Input, from_yaml
from tui.editor import edited
from tui.forms import fields_of, value_of
from tui.planning import Energy, Outlook
from tui.screens.ask import AskDialog
from tui.screens.compose_reading import ComposeReading
from tui.widgets.method_form import MethodForm
from tui.widgets.page import Page
from tui.widgets.paged_table import PagedTable, Row

STEP = 0.05
OF_AN_INPUT = {"more", "less", "weigh", "mute", "negate", "drop"}


class ComposeScreen(ComposeReading):
    """The recipe that is being made."""

    scope = "compose"
    BINDINGS = bindings("compose")
    help = "Weights are those of the deltas. The form and the YAML are two views of one recipe."

    _unreadable = False

    def body(self) -> ComposeResult:
        """Inputs over the form; the plan, the recipe and the conflicts beside them."""
        with Horizontal():
            with Vertical(id="compose-left"):
                yield PagedTable(inputs.COLUMNS, id="inputs")
                yield MethodForm()
            with TabbedContent(id="compose-right", classes="pane"):
                with TabPane("Plan", id="plan-tab"):
                    yield Page(id="plan")
                with TabPane("Recipe", id="recipe-tab"):
                    yield TextArea(id="recipe")
                with TabPane("Conflicts", id="conflicts-tab"):
                    yield Page(id="conflicts", wrap=False)

    def on_mount(self) -> None:
        """Follow the recipe."""
        self.inputs.empty = inputs.EMPTY
        self.inputs.focus()
        self.query_one("#conflicts", Page).show("o computes how the inputs conflict.")
        self.watch(app_of(self), "draft", self._show)
        self.watch(app_of(self), "basket", self._show_inputs, init=False)

    @property
    def inputs(self) -> PagedTable:
        """The table of inputs."""
        return self.query_one("#inputs", PagedTable)

    @property
    def draft(self) -> Draft:
        """The recipe."""
        return app_of(self).draft

    def command(self) -> str:
        """`lorahub merge`."""
        return self.draft.command()

    async def _show(self) -> None:
        """Bring form, inputs and YAML to what the recipe is, and plan it anew."""
        self._show_inputs()
        await self.query_one(MethodForm).show(self.draft)
        area = self.query_one("#recipe", TextArea)
        try:
            same = bool(area.text) and from_yaml(area.text, self.draft) == self.draft
        except LorahubError:
            same = False
        if not same:
            self._write()
        self._unreadable = False
        self.read_outlook(self.draft)
        self.say_command()

    def _write(self) -> None:
        area = self.query_one("#recipe", TextArea)
        with area.prevent(TextArea.Changed):
            area.text = self.draft.to_yaml() if self.draft.inputs else ""
        self._unreadable = False

    def _show_inputs(self) -> None:
        self.inputs.reset(
            len(self.draft.inputs), self._rows(0), cursor=min(
                self.inputs.cursor, max(0, len(self.draft.inputs) - 1)
            )
        )  # fmt: skip
        count = sum(not i.muted for i in self.draft.inputs)
        self.inputs.border_title = text.plural(count, "input")

    def _rows(self, first: int) -> list[Row]:
        return inputs.rows(self.draft, app_of(self).basket, first)

    def on_paged_table_wanted(self, event: PagedTable.Wanted) -> None:
        """Further inputs."""
        self.inputs.put(event.first, self._rows(event.first), event.generation)

    def on_paged_table_opened(self) -> None:
        """Enter types the weight."""
        self.action_do("weigh")

    def on_method_form_changed(self, event: MethodForm.Changed) -> None:
        """A field of the form."""
        draft = self.draft
        if event.kind == "method":
            method = get(str(event.value))
            draft = draft.with_method(method.name, [f.name for f in fields_of(method)])
        elif event.kind == "name":
            draft = draft.with_name(str(event.value).strip())
        elif event.kind == "parameter":
            draft = draft.with_parameter(event.name, event.value)
        else:
            draft = draft.with_rest(**{event.name: event.value})
        app_of(self).edit(draft, typing=event.kind != "method")

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """The recipe's text; as long as it is none, it stays text."""
        try:
            draft = from_yaml(event.text_area.text, self.draft)
        except LorahubError as error:
            self._unreadable = True
            self.say_plan(Outlook(problem=text.spoken(error)))
            return
        if self._unreadable and draft == self.draft:
            self.read_outlook(draft)
        self._unreadable = False
        app_of(self).edit(draft, typing=True)

    def on_compose_reading_planned(self, event: ComposeReading.Planned) -> None:
        """Show the plan of the present recipe."""
        if event.draft == self.draft:
            self.say_plan(event.outlook)

    def on_compose_reading_compared(self, event: ComposeReading.Compared) -> None:
        """Show the conflicts, or why there are none."""
        page = self.query_one("#conflicts", Page)
        if isinstance(event.outcome, LorahubError):
            page.show(text.spoken(event.outcome))
            return
        page.show(figures.conflicts(event.outcome))
        self.energy = Energy.of(event.outcome)
        self.read_outlook(self.draft)

    def on_compose_reading_suggested(self, event: ComposeReading.Suggested) -> None:
        """Take what was suggested into the recipe; undo takes it back."""
        draft = self.draft.with_rest(**event.changes)
        weighted = (
            i.weighted(event.weights[i.adapter]) if i.adapter in event.weights else i
            for i in draft.inputs
        )
        app_of(self).edit(replace(draft, inputs=tuple(weighted)))
        self.app.notify(event.reason, title="suggested", timeout=12, markup=False)

    # Actions

    def why_not(self, name: str) -> str | None:
        """Changes of an input need one; merging needs a plan."""
        if name in OF_AN_INPUT | {"equalise", "editor"} and not self.draft.inputs:
            return "there are no inputs: pick adapters in Browse (1) with space"
        if name == "merge" and self.problem:
            return self.problem
        if name in {"conflicts", "suggest"} and len(self._live()) < 2:
            return "it takes two inputs that are not muted"
        if name == "undo" and not (self._unreadable or app_of(self).edits.past):
            return "there is nothing to undo"
        if name == "redo" and not app_of(self).edits.future:
            return "there is nothing to do again"
        return None

    def _live(self) -> list[str]:
        return [i.adapter for i in self.draft.inputs if not i.muted]

    def _change(self, changed: Input | None) -> None:
        app_of(self).edit(self.draft.with_input(self.inputs.cursor, changed))

    @property
    def _input(self) -> Input:
        return self.draft.inputs[self.inputs.cursor]

    def do_more(self) -> None:
        """A step up."""
        self._change(self._input.weighted(self._input.weight + STEP))

    def do_less(self) -> None:
        """A step down."""
        self._change(self._input.weighted(self._input.weight - STEP))

    def do_negate(self) -> None:
        """The other sign."""
        self._change(self._input.weighted(-self._input.weight))

    def do_mute(self) -> None:
        """Out for now, or in again."""
        self._change(Input(self._input.source, not self._input.muted))

    def do_drop(self) -> None:
        """Out."""
        self._change(None)

    def do_equalise(self) -> None:
        """All alike."""
        app_of(self).edit(self.draft.equalised())

    def do_weigh(self) -> None:
        """Ask for the weight."""
        name = self._input.adapter
        dialog = AskDialog(f"Weight of {name}", "a number", value=text.number(self._input.weight))
        self.app.push_screen(dialog, self._weighed)

    def _weighed(self, answer: str | None) -> None:
        if answer is None:
            return
        value = value_of(answer)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.app.notify(f"'{answer}' is not a number", severity="warning", markup=False)
            return
        self._change(self._input.weighted(float(value)))

    def do_undo(self) -> None:
        """Back by one: a text that is no recipe becomes the recipe again, and that is all."""
        if self._unreadable:
            self._write()
            self.read_outlook(self.draft)
            return
        app_of(self).edits.undo()
        app_of(self).draft = app_of(self).edits.draft

    def do_redo(self) -> None:
        """Forward by one."""
        app_of(self).edits.redo()
        app_of(self).draft = app_of(self).edits.draft

    def do_copy(self) -> None:
        """The recipe's text."""
        app_of(self).copy(self.draft.to_yaml())

    def do_back(self) -> None:
        """To the inputs."""
        self.inputs.focus()

    def do_conflicts(self) -> None:
        """By `lorahub compare`, in a child process."""
        self.query_one("#compose-right", TabbedContent).active = "conflicts-tab"
        self.query_one("#conflicts", Page).show("computing ... lorahub compare")
        self.read_conflicts(self._live())

    def do_suggest(self) -> None:
        """By `lorahub suggest`, in a child process."""
        self.app.notify("asking: lorahub suggest ...")
        self.read_suggestion(self._live())

    def do_editor(self) -> None:
        """The recipe's text in $EDITOR."""
        app = app_of(self)
        try:
            app.edit(from_yaml(edited(app, self.draft.to_yaml(), "recipe.yaml"), self.draft))
        except LorahubError as error:
            app.complain(error)

    def do_merge(self) -> None:
        """As a job; first a name, if it has none."""
        output = self.draft.rest.get("output") or {}
        if self.draft.name or "folder" in output:
            self._merge()
            return
        command = f"{self.draft.command()} --name"
        dialog = AskDialog("Name of the result", "letters, digits, - _ .", command)
        self.app.push_screen(dialog, self._named)

    def _named(self, name: str | None) -> None:
        if not name:
            return
        try:
            named = self.draft.with_name(check_name(name))
        except LorahubError as error:
            app_of(self).complain(error)
            return
        app_of(self).edit(named)
        self._merge()

    def _merge(self) -> None:
        draft = self.draft.anchored(Path.cwd())
        words = ["merge", "RECIPE", "--events", "jsonl"]
        app_of(self).submit(words, f"merge {draft.name or 'recipe'}", draft.to_yaml())
