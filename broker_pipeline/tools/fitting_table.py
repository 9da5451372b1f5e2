"""A table that is still read where it does not fit: each row becomes a paragraph whose cells stay whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.text import Text

from broker_pipeline.process.terminal import plain_table

Row = Sequence[str | Text]
ARROW = " → "
"""What a chain in the first cell may be broken at."""


@dataclass(frozen=True)
class FittingTable:
    """A table of rows under headings, or paragraphs: the first cell, and under it the others with their headings."""

    headings: Sequence[str]
    rows: Sequence[Row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        table = plain_table(*self.headings)
        for row in self.rows:
            table.add_row(*row)
        if Measurement.get(console, options.update(max_width=10_000), table).maximum <= options.max_width:
            yield table
        else:
            for row in self.rows:
                yield from self._paragraph(row, options.max_width)

    def _paragraph(self, row: Row, width: int) -> Iterator[Text]:
        first, *rest = (Text(cell) if isinstance(cell, str) else cell for cell in row)
        titled = Text.assemble((f"{self.headings[0]} ", "dim"), first)
        yield from _packed(titled.split(ARROW), ARROW, width)
        cells = [
            Text.assemble((f"{name} ", "dim"), cell) for name, cell in zip(self.headings[1:], rest, strict=True) if cell
        ]
        yield from (Text("  ") + line for line in _packed(cells, "  ", width - 2))


def _packed(parts: Iterable[Text], separator: str, width: int) -> Iterator[Text]:
    """Yield lines of as many parts as fit."""
    line = Text()
    for part in parts:
        if not line:
            line = part
        elif line.cell_len + len(separator.rstrip()) + len(separator) + part.cell_len <= width:
            line = line + separator + part
        else:
            yield line + separator.rstrip()
            line = part
    yield line
