"""The derived figures and tables, each computed once for all tests (which one worker runs)."""

import functools

from flashref.simulate.paper.tables import FIGURES

COMPUTE = dict(FIGURES)


@functools.cache
def derived(name):
    return COMPUTE[name]()


def ours(figure):
    """Series and place → our value, without the paper's."""
    return [(row.series, row.x, row.ours) for row in figure.rows]
