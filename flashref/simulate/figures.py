"""The paper's figures as numbers, digitised: flashref/data/paper, whose README says how."""

import functools
import json
from pathlib import Path
from typing import Any

from flashref.types import DomainError

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
