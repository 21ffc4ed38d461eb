"""What a campaign found, as a table on the terminal and as its section of docs/reliability.md."""

import re
from pathlib import Path

from layerfs.value import frozen


@frozen
class Section:
    """One campaign's table. `command` repeats it; `notes` are sentences that say what a figure means."""

    title: str
    command: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The section from its heading on, with a newline at the end."""
        table = [self.columns, ("---",) * len(self.columns), *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
        return "\n".join([f"## {self.title}", "", f"`{self.command}`", "", *lines, "", *self._paragraphs()])

    def _paragraphs(self) -> list[str]:
        return [line for note in self.notes for line in (note, "")]


def write(section: Section, page: Path) -> None:
    """Put the section into the Markdown page: in the place of the one with its title, else at the end."""
    text = page.read_text() if page.exists() else "# Reliability\n"
    old = re.compile(rf"^## {re.escape(section.title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if not old.search(text):
        text = f"{text}\n## {section.title}\n"
    text = old.sub(lambda _: section.markdown() + "\n", text, count=1)
    page.write_text(text.rstrip("\n") + "\n")
