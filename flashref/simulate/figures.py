"""The paper's figures as numbers, which were read off its plots; flashref/data/paper/README.md says how."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flashref.types import DomainError

# What Table 2 gives for a token of OPT 6.7B: bytes read, and milliseconds of I/O.
TABLE_2: Mapping[str, tuple[int, float]] = MappingProxyType(
    {
        "naive": (13_400_000_000, 2196),
        "hybrid": (6_700_000_000, 1090),
        "predictor": (900_000_000, 738),
        "windowing": (200_000_000, 164),
        "bundling": (200_000_000, 87),
    }
)
FILE = Path(__file__).parent.parent / "data" / "paper" / "figures.json"


@functools.cache
def _figures() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(FILE.read_text())
    return figures


def paper_figure(name: str) -> Any:
    """Look up a figure; what is returned must not be changed.

    Args:
        name: a key of figures.json, which flashref/data/paper/README.md describes.

    Returns:
        The figure's numbers, as the README describes them.

    Raises:
        DomainError: there is no such figure.
    """
    if name not in _figures():
        raise DomainError(f"there is no figure {name!r}; the figures are {', '.join(_figures())}")
    return _figures()[name]


def figure_densities(name: str) -> tuple[float, ...]:
    """The densities of one of Figs. 9a–c.

    Args:
        name: a key of figures.json.

    Returns:
        A share of the neurons for each layer; the figure itself is in %.
    """
    return tuple(percent / 100 for percent in paper_figure(name))


def use_curve() -> tuple[tuple[int, float], ...]:
    """The aggregated use of neurons in Falcon 7B's layer 10 (the paper's Fig. 4a).

    Returns:
        Pairs (k, s_agg(k)) for k = 1 … 31, as shares of the neurons.
    """
    return tuple((int(k), percent / 100) for k, percent in paper_figure("fig4a_sagg").items() if int(k) > 0)
