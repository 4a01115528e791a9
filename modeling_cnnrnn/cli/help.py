"""Help that can be read: the description keeps its lines, options stand in a panel per group, each with its sentence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from typer.core import TyperCommand


class Entry(NamedTuple):
    """One option in the help: its names, its type and default, its sentence."""

    names: str
    values: str
    sentence: str


class OptionsCommand(TyperCommand):
    """A command whose help has the names, the type and the default of an option on one line and its sentence below."""

    panels: Mapping[str, Sequence[Entry]]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.console import Console, Group
        from rich.padding import Padding
        from rich.panel import Panel
        from rich.text import Text

        console = Console(highlight=False)
        console.print(Text(self.get_usage(ctx)), Text(""), sep="\n")
        if self.help:
            # lines stay whole where a terminal is narrower: a command that is copied must not have new ends in it
            console.print(Text(self.help), Text(""), sep="\n", soft_wrap=True)
        for title, entries in self.panels.items():
            lines: list[Any] = []
            for entry in entries:
                lines.append(Text.assemble((entry.names, "bold cyan"), " ", (entry.values, "dim")))
                lines.append(Padding(Text(entry.sentence), (0, 0, 0, 4)))
            console.print(Panel(Group(*lines), title=title, title_align="left", border_style="dim"))
