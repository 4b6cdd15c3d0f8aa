"""Every bindable action, once: keys, help and the palette are made from this table.

An action that is not here cannot be bound, found in the palette or read about in the help. A
screen or widget answers action ``x`` with its method ``do_x``; ``why_not(x)`` says why it cannot
be done now.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding, BindingType


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a user can ask for.

    Attributes:
        name: Its name; users' keymaps and ``do_NAME`` use it. Unique.
        scope: Where it applies: ``app``, a screen's name, or a widget's.
        keys: Keys it has unless the user's keymap says otherwise, separated by commas.
        title: One to three words, for the footer and the palette.
        help: One sentence, for the help screen.
        shown: Whether the footer shows it.
    """

    name: str
    scope: str
    keys: str
    title: str
    help: str
    shown: bool = False


ACTIONS: tuple[Action, ...] = (
    # The application
    Action("browse", "app", "1", "Browse", "Go to the adapters of the catalog."),
    Action("compose", "app", "2", "Compose", "Go to the recipe that is being made."),
    Action("run", "app", "3", "Run", "Go to the jobs: running, waiting and ended."),
    Action("history", "app", "4", "History", "Go to the merges made so far."),
    Action("inspect", "app", "5", "Inspect", "Look into the highlighted adapters."),
    Action("remote", "app", "6", "Remote", "Find adapters on the Hub and pull them."),
    Action("help", "app", "question_mark", "Help", "Show the keys of this screen.", shown=True),
    Action("palette", "app", "ctrl+p", "Palette", "Find an action by its name.", shown=True),
    Action("jump", "app", "ctrl+o", "Jump", "Put a letter on every pane; the letter goes there."),
    Action("theme", "app", "f2", "Theme", "Change to the next theme: dark, light, high contrast."),
    Action("copy_command", "app", "Y", "Copy command", "Copy the command line at the bottom."),
    Action("quit", "app", "q,ctrl+q", "Quit", "Leave; running jobs may go on."),
    # Tables
    Action("down", "table", "j,down", "Down", "One row down."),
    Action("up", "table", "k,up", "Up", "One row up."),
    Action("page_down", "table", "ctrl+d,pagedown", "Page down", "One page down."),
    Action("page_up", "table", "ctrl+u,pageup", "Page up", "One page up."),
    Action("first", "table", "g,home", "First", "To the first row."),
    Action("last", "table", "G,end", "Last", "To the last row."),
    Action("open", "table", "enter", "Open", "Open what the row stands for."),
    # Browse
    Action("filter", "browse", "slash", "Filter", "Filter as you type.", shown=True),
    Action("pick", "browse", "space", "Basket", "Put the adapter in, or out of, the basket.",
           shown=True),
    Action("use", "browse", "c", "Compose", "Compose a merge of the basket.", shown=True),
    Action("sort", "browse", "s", "Sort", "Sort by the next column, or figure of a suite.",
           shown=True),
    Action("reverse", "browse", "S", "Reverse", "Reverse the order."),
    Action("facets", "browse", "f", "Facets", "Go to the facets; again, hide them."),
    Action("details", "browse", "d", "Details", "Show or hide the detail pane."),
    Action("clear_filter", "browse", "escape", "Clear", "Clear the filter, back to the table."),
    Action("look", "browse", "i", "Inspect", "Look into the adapter, or into the basket."),
    Action("export", "browse", "e", "Export", "Copy the adapter into a folder.", shown=True),
    Action("push", "browse", "p", "Push", "Publish the adapter on the Hub."),
    Action("verify", "browse", "v", "Verify", "Recompute a merged adapter and compare."),
    Action("remove", "browse", "x", "Remove", "Take the adapter out of the catalog."),
    Action("empty", "browse", "X", "Empty basket", "Take everything out of the basket."),
    Action("pull", "browse", "L", "Pull", "Pull a repository or a folder by its name."),
    Action("copy", "browse", "y", "Copy name", "Copy the adapter's name."),
    # Compose
    Action("merge", "compose", "ctrl+r,m", "Merge", "Run the merge.", shown=True),
    Action("more", "compose", "plus,equals_sign", "More", "Raise the weight by 0.05.", shown=True),
    Action("less", "compose", "minus", "Less", "Lower the weight by 0.05.", shown=True),
    Action("weigh", "compose", "w", "Weight", "Type the weight.", shown=True),
    Action("equalise", "compose", "e", "Equalise", "Give all inputs the weight 1/n."),
    Action("mute", "compose", "space", "Mute", "Leave the input out, or take it in again.",
           shown=True),
    Action("negate", "compose", "n", "Negate", "Turn the sign of the weight."),
    Action("drop", "compose", "x", "Drop", "Take the input out of the recipe."),
    Action("undo", "compose", "u,ctrl+z", "Undo", "Undo the last change.", shown=True),
    Action("redo", "compose", "U,ctrl+y", "Redo", "Do again what was undone."),
    Action("conflicts", "compose", "o", "Conflicts", "Compute how the inputs conflict."),
    Action("suggest", "compose", "S", "Suggest", "Ask which method and parameters fit."),
    Action("editor", "compose", "ctrl+e", "Editor", "Edit the recipe in $EDITOR."),
    Action("back", "compose", "escape", "Back", "From a field back to the inputs."),
    Action("copy", "compose", "y", "Copy recipe", "Copy the recipe as YAML."),
    # Run
    Action("cancel", "run", "x", "Cancel", "Stop the job now; again, kill it.", shown=True),
    Action("pause", "run", "space", "Pause", "Pause the job, or let it go on.", shown=True),
    Action("again", "run", "r", "Again", "Start the same job again.", shown=True),
    Action("forget", "run", "d", "Forget", "Take an ended job off the list.", shown=True),
    Action("copy", "run", "y", "Copy", "Copy the job's log."),
    # History
    Action("again", "history", "r", "Repeat", "Run the same recipe again.", shown=True),
    Action("edit", "history", "e", "Edit", "Open the recipe in Compose.", shown=True),
    Action("diff", "history", "space", "Diff", "Mark a run; a second one is compared with it.",
           shown=True),
    Action("push", "history", "p", "Push", "Publish the result on the Hub."),
    Action("open_folder", "history", "o", "Folder", "Open the result's folder."),
    Action("copy", "history", "y", "Copy recipe", "Copy the recipe as YAML."),
    # Inspect
    Action("measure", "inspect", "m", "Measure", "Read the factors and measure them again."),
    Action("figure", "inspect", "space", "Figure", "Show the next figure in the map.",
           shown=True),
    # Remote
    Action("filter", "remote", "slash", "Search", "Type what to look for.", shown=True),
    Action("pull", "remote", "L", "Pull", "Pull the highlighted repository.", shown=True),
    Action("update", "remote", "U", "Updates", "Ask which pulled adapters changed since."),
    Action("back", "remote", "escape", "Back", "From the line to what was found."),
    Action("copy", "remote", "y", "Copy name", "Copy the repository's name."),
)  # fmt: skip


def of_scope(scope: str) -> tuple[Action, ...]:
    """The actions of a scope, in order."""
    return tuple(action for action in ACTIONS if action.scope == scope)


def bindings(scope: str) -> list[BindingType]:
    """The key bindings of a scope, for a class's ``BINDINGS``."""
    return [
        Binding(
            action.keys,
            f"do('{action.name}')",
            action.title,
            show=action.shown,
            tooltip=action.help,
            id=binding_id(action),
        )
        for action in of_scope(scope)
    ]


def binding_id(action: Action) -> str:
    """The name by which a user's keymap rebinds an action: ``SCOPE.NAME``."""
    return f"{action.scope}.{action.name}"
