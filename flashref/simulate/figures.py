"""The paper's figures as numbers, digitised: flashref/data/paper, whose README says how."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flashref.types import DomainError

# The bytes and the ms of I/O that Table 2 gives for a token of OPT 6.7B.
TABLE_2: Mapping[str, tuple[int, float]] = MappingProxyType(
    {
        "naive": (13_400_000_000, 2196),
        "hybrid": (6_700_000_000, 1090),
        "predictor": (900_000_000, 738),
        "windowing": (200_000_000, 164),
        "bundling": (200_000_000, 87),
    }
)
FIGURES = Path(__file__).parent.parent / "data" / "paper" / "figures.json"


@functools.cache
def _figures() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(FIGURES.read_text())
    return figures


def paper_figure(name: str) -> Any:
    """A series as data/paper/README.md describes it, not to be changed. DomainError if unknown."""
    if name not in _figures():
        raise DomainError(f"there is no figure {name!r}; the figures are {', '.join(_figures())}")
    return _figures()[name]


def figure_densities(name: str) -> tuple[float, ...]:
    """A figure of Fig. 9a–c as shares of the neurons, layer by layer; the figure is in %."""
    return tuple(percent / 100 for percent in paper_figure(name))


def use_curve() -> tuple[tuple[int, float], ...]:
    """Fig. 4a: pairs (k, s_agg(k)) for k = 1 … 31, as shares of the neurons; Falcon 7B, layer 10."""
    return tuple((int(k), percent / 100) for k, percent in paper_figure("fig4a_sagg").items() if int(k) > 0)
