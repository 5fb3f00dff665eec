"""The derived figures and tables, each computed once for all tests (which one worker runs)."""

import functools

from flashref.simulate.paper.tables import FIGURES

COMPUTE = dict(FIGURES)
NAMES = ["figure2b", "figure4a", "table2", "table3", "appendix_c", "figure7", "figure8", "coactivation"]


@functools.cache
def derived(name):
    return COMPUTE[name]()


def value(name, series, x=None):
    """The one row of a figure with this series and this x."""
    (row,) = [row for row in derived(name).rows if (row.series, row.x) == (series, x)]
    return row


def ours(figure):
    """Series and place → our value, without the paper's."""
    return [(row.series, row.x, row.ours) for row in figure.rows]
