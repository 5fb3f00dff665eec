"""All derived figures and tables, by name."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from flashref.simulate.paper.appendix_c import appendix_c
from flashref.simulate.paper.coactivation import coactivation
from flashref.simulate.paper.curves import figure2b, figure4a
from flashref.simulate.paper.figure import Figure
from flashref.simulate.paper.latency import figure7, figure8
from flashref.simulate.paper.table2 import Table2, table2
from flashref.simulate.paper.table3 import table3
from flashref.storage.progress import Progress, unseen
from flashref.types import DomainError

# In the order in which they are computed and shown.
FIGURES: Mapping[str, Callable[[], Figure | Table2]] = MappingProxyType(
    {
        "figure2b": figure2b,
        "figure4a": figure4a,
        "table2": table2,
        "table3": table3,
        "appendix_c": appendix_c,
        "figure7": figure7,
        "figure8": figure8,
        "coactivation": coactivation,
    }
)


def paper_tables(
    names: Sequence[str] | None = None, progress: Progress = unseen
) -> dict[str, Figure | Table2]:
    """Derive the paper's figures and tables, and set the paper's own values beside ours.

    Args:
        names: some names of FIGURES; None for all of them.
        progress: is told how far the work has come.

    Returns:
        The figures and tables by name, in the order of FIGURES; each has `rows` with our value, the paper's
        and the error.

    Raises:
        DomainError: no figure has such a name.
    """
    for name in names or ():
        if name not in FIGURES:
            raise DomainError(f"no figure is called {name!r}; use {', '.join(FIGURES)}")
    asked = [name for name in FIGURES if names is None or name in names]
    results: dict[str, Figure | Table2] = {}
    for done, name in enumerate(asked):
        progress("the paper's figures", done, len(asked))
        results[name] = FIGURES[name]()
    return results
