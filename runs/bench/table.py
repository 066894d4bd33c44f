"""The table that the bench prints: figures, bars, and whether they are met."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from runs.bench.timing import Figure

NOT_MEASURED = "not measured"


class Bar(NamedTuple):
    """What a figure must reach.

    Attributes:
        sense: From which side.
        limit: In the unit of the figure.
        unit: Unit of the figure, "x" for a ratio.
    """

    sense: Literal["at least", "at most"]
    limit: float
    unit: str

    def met(self, value: float) -> bool:
        """Whether a figure is on the right side."""
        return value >= self.limit if self.sense == "at least" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.sense} {self.limit:g} {self.unit}"


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        name: What was measured; a bar has the name of its row.
        figure: The figure; None if it could not be had here, for the reason in `note`.
        unit: Its unit.
        note: What else to know.
    """

    name: str
    figure: Figure | None
    unit: str = ""
    note: str = ""


class Table:
    """Lines of text as rows come, and a verdict at their end.

    Args:
        bars: By names of rows.
    """

    def __init__(self, bars: Mapping[str, Bar]) -> None:
        self.bars = dict(bars)
        self.figures: dict[str, Figure] = {}
        self._shown: set[str] = set()

    def lines(self, rows: Iterable[Row]) -> Iterator[str]:
        """Yield a line of each row."""
        for row in rows:
            self._shown.add(row.name)
            if row.figure is not None:
                self.figures[row.name] = row.figure
            yield self._line(row)

    def remaining(self, names: Iterable[str], why: str) -> Iterator[str]:
        """Yield a line for each of `names` that no row has spoken of."""
        yield from self.lines(Row(n, None, note=why) for n in names if n not in self._shown)

    @property
    def missed(self) -> list[str]:
        """Bars that were measured and missed, in words."""
        return [
            f"{name}: {_number(self.figures[name].median)} {bar.unit}, {bar}"
            for name, bar in self.bars.items()
            if name in self.figures and not bar.met(self.figures[name].median)
        ]

    @property
    def verdict(self) -> str:
        """How many bars were met, missed, and not measured."""
        measured = len(self.bars.keys() & self.figures.keys())
        missed = len(self.missed)
        return (
            f"{measured - missed} of {len(self.bars)} bars met, {missed} missed, "
            f"{len(self.bars) - measured} not measured"
        )

    def _line(self, row: Row) -> str:
        bar = self.bars.get(row.name)
        figure, spread, word = NOT_MEASURED, "", ""
        if row.figure is not None:
            middle, low, high = map(_number, row.figure)
            figure = f"{middle} {row.unit}"
            spread = f"{low} to {high}" if low != high else ""
            word = "" if bar is None else "met" if bar.met(row.figure.median) else "MISSED"
        return (
            f"{row.name:74} {figure:>14}  {spread:18} {bar or ''!s:16} {word:7}{row.note}"
        ).rstrip()


HEAD = f"{'':74} {'median':>14}  {'quartiles':18} {'bar':16}"


def _number(value: float) -> str:
    if 1000 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.3g}"
