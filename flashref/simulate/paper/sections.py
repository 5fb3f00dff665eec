"""A derived figure in words: the section that terminal, page and notebook have in common."""

from statistics import median
from typing import NamedTuple

from flashref.simulate.html import html_table

RULE = (
    "Each figure is derived from shapes, densities, traces and a device that was fitted to Fig. 2b, never "
    "from the result that it is compared with. Figs. 2b and 4a only show how well their own fits hold, for "
    "the device and the process that draws the traces were fitted to them. The bytes of Table 2's rows with "
    "a window are close by construction, for the trace was fitted to the shares that the paper states; only "
    "their times are a test. An error is (ours − paper) / paper. A dash stands for a value that cannot be "
    "derived, or that the paper does not give."
)


class Section(NamedTuple):
    """A figure or table in words.

    name: its name for --only.
    title: what it shows, by the paper's number.
    inputs: everything that our values are derived from.
    headings, rows: the table.
    text: how many of the first columns hold words.
    short: the numbers of the rows that a terminal shows.
    errors: the relative errors of all values that are compared.
    notes: what a reader needs to know of it, in whole sentences.
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
        """A row of the first table: its title, how many values are compared, the errors, and its inputs."""
        errors = list(self.errors)
        sizes = [_size(median_error(errors)), _size(largest_error(errors))]
        return (self.title, str(len(errors)), *sizes, self.inputs)

    @property
    def agreement(self) -> str:
        """A sentence on how well our values and the paper's agree."""
        _, compared, middle, largest, _ = self.summary
        if not self.errors:
            return "None of the values is compared with one of the paper's."
        values = "value is" if len(self.errors) == 1 else "values are"
        return f"{compared} {values} compared: the median error is {middle}, and the largest is {largest}."


SUMMARY = ("figure", "values compared", "median error", "largest error", "derived from")


def section_html(each: Section) -> str:
    """Write the rows of a section as an HTML table."""
    words = {at for at, heading in enumerate(each.headings) if at < each.text or heading == "note"}
    return html_table(each.title, each.headings, each.rows, words)


def median_error(errors: list[float]) -> float | None:
    """The median size of relative errors; None if there are none."""
    return median(map(abs, errors)) if errors else None


def largest_error(errors: list[float]) -> float | None:
    """The largest size of relative errors; None if there are none."""
    return max(map(abs, errors), default=None)


def error_cell(error: float | None) -> str:
    """A relative error as a cell of a table; empty if there is none."""
    return "" if error is None else f"{round(100 * error, 1) or 0.0:+.1f} %"


def _size(error: float | None) -> str:
    return "–" if error is None else f"{100 * error:.1f} %"
