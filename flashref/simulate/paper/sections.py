"""What a derived figure is in words: the section that a terminal, the page and a notebook have in common."""

from statistics import median
from typing import NamedTuple

from flashref.simulate.html import html_table

RULE = (
    "Each figure is derived from shapes, densities, traces and a device fitted to Fig. 2b, never from the "
    "result that it is compared with. Figs. 2b and 4a are what device and process were fitted to: theirs are "
    "residuals of a fit."
)


class Section(NamedTuple):
    """A figure or table in words. name: as --only has it; text: how many leading columns are words.

    short: the rows that a terminal shows; errors: relative, of all values that are compared.
    """

    name: str
    title: str
    inputs: str
    headings: tuple[str, ...]
    text: int
    rows: tuple[tuple[str, ...], ...]
    short: tuple[int, ...]
    errors: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def summary(self) -> tuple[str, ...]:
        """Title, values compared, median and largest error, what it comes from: a row of the first table."""
        errors = list(self.errors)
        sizes = [_size(median_error(errors)), _size(largest_error(errors))]
        return (self.title, str(len(errors)), *sizes, self.inputs)

    @property
    def agreement(self) -> str:
        """How far ours and the paper's values agree: one sentence."""
        _, compared, middle, largest, _ = self.summary
        if not self.errors:
            return "No value is compared with one of the paper's."
        values = "value is" if len(self.errors) == 1 else "values are"
        return f"{compared} {values} compared: the median error is {middle}, the largest {largest}."


SUMMARY = ("figure", "values compared", "median error", "largest error", "derived from")


def section_html(each: Section) -> str:
    """The rows of a section as a table."""
    words = {at for at, heading in enumerate(each.headings) if at < each.text or heading == "note"}
    return html_table(each.title, each.headings, each.rows, words)


def median_error(errors: list[float]) -> float | None:
    """The median of the relative errors' sizes; None if there are none."""
    return median(map(abs, errors)) if errors else None


def largest_error(errors: list[float]) -> float | None:
    """The largest size of a relative error; None if there are none."""
    return max(map(abs, errors), default=None)


def error_cell(error: float | None) -> str:
    """A relative error as a cell of a table; empty if there is none."""
    return "" if error is None else f"{round(100 * error, 1) or 0.0:+.1f} %"


def _size(error: float | None) -> str:
    return "–" if error is None else f"{100 * error:.1f} %"
