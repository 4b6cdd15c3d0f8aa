"""The form of a merge: its method, the method's parameters, the name, and all other options."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Label, Select, Static

from lorahub.methods.registry import get, methods
from tui import text
from tui.acting import app_of
from tui.draft import DEFAULT_METHOD, Draft
from tui.forms import OPTIONS, Field, fields_of, text_of, value_of

PLAIN = tuple(Field(name, hint) for name, hint in OPTIONS.items())


class MethodForm(VerticalScroll, can_focus=False):
    """Fields follow the draft; a field that is changed says so with `Changed`."""

    class Changed(Message):
        """A field has another value: of ``kind`` method, name, parameter or option."""

        def __init__(self, kind: str, name: str, value: object) -> None:
            super().__init__()
            self.kind, self.name, self.value = kind, name, value

    def __init__(self) -> None:
        super().__init__(id="form", classes="pane")
        self._method = ""
        self._draft = Draft()

    def compose(self) -> ComposeResult:
        """Method and name; then its parameters; then what every method takes."""
        self.border_title = "Method"
        with Horizontal(classes="field"):
            yield Label("method")
            draft, known = app_of(self).draft, list(methods())
            yield Select(
                [(n, n) for n in known],
                value=draft.method if draft.method in known else DEFAULT_METHOD,
                allow_blank=False,
                id="method",
                compact=True,
            )
        yield Static(id="summary")
        yield from _row(Field("name", "catalog name of the result"), "name")
        yield Vertical(id="parameters")
        for field in PLAIN:
            yield from _row(field, f"option-{field.name}")

    async def show(self, draft: Draft) -> None:
        """Show a draft; what is typed just now stays as it is typed."""
        self._draft = draft
        known = draft.method in methods()
        if known and draft.method != self._method:
            self._method = draft.method
            method = get(draft.method)
            self.query_one("#summary", Static).update(text.shown(method.summary))
            box = self.query_one("#parameters")
            await box.remove_children()
            await box.mount_all(
                widget for f in fields_of(method) for widget in _row(f, f"parameter-{f.name}")
            )
        with self.prevent(Select.Changed, Input.Changed):
            if known:
                self.query_one("#method", Select).value = draft.method
            self._set("#name", draft.name or None)
            for field in fields_of(get(draft.method)) if known else ():
                self._set(f"#parameter-{field.name}", draft.parameters.get(field.name))
            for field in PLAIN:
                self._set(f"#option-{field.name}", draft.rest.get(field.name))

    def _set(self, selector: str, value: object) -> None:
        widget = self.query_one(selector)
        if isinstance(widget, Input) and value_of(widget.value) != value:
            widget.value = text_of(value)
        elif isinstance(widget, Select):
            widget.value = Select.NULL if value is None else text_of(value)

    def on_input_changed(self, event: Input.Changed) -> None:
        """A text field."""
        event.stop()
        self._tell(event.input, value_of(event.value) if event.input.id != "name" else event.value)

    def on_select_changed(self, event: Select.Changed) -> None:
        """A choice."""
        event.stop()
        chosen = None if event.value is Select.NULL else value_of(str(event.value))
        self._tell(event.select, chosen)

    def _tell(self, widget: Widget, value: object) -> None:
        kind, _, name = (widget.id or "").partition("-")
        self.post_message(self.Changed(kind, name, value))


def _row(field: Field, name: str) -> ComposeResult:
    if field.choices:
        control: Widget = Select(
            [(c, c) for c in field.choices], prompt=f"default {field.hint}", id=name, compact=True
        )
    else:
        control = Input(placeholder=field.hint, id=name, compact=True)
    yield Horizontal(Label(field.name), control, classes="field")
