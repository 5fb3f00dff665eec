"""Traces of activation: which neurons are predicted for each token, layer by layer.

A unit is what a cache holds: an id with a size in bytes. Here it is a neuron's bundle; it may just as well be
an expert of a mixture.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.types import DomainError, Ids, ascending_ids

Counts = npt.NDArray[np.int64]
TokenNumbers = npt.NDArray[np.signedinteger[Any]]
Mask = npt.NDArray[np.bool_]


class ActivationTrace(NamedTuple):
    """The active units of every token and layer.

    units: how many units each layer has.
    ids: (m,) int32, ascending within a layer of a token; m uses in all, each of one unit in one token.
    starts: (tokens·layers + 1,) int64; layer l of token t has ids[starts[t·layers + l] : starts[t·layers +
        l + 1]].
    first_counted: the first token whose costs count; the warm-up tokens before it only fill what is kept
        (decision 21: the prompt passes through the same window).
    """

    units: tuple[int, ...]
    ids: npt.NDArray[np.int32]
    starts: Counts
    first_counted: int = 0

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.units)

    @property
    def tokens(self) -> int:
        """The number of tokens, with those of the warm-up."""
        return (len(self.starts) - 1) // len(self.units)

    def active(self, token: int, layer: int) -> Ids:
        """The ids that are active in one token and layer, (m,) int64, ascending."""
        at = token * self.layers + layer
        return self.ids[self.starts[at] : self.starts[at + 1]].astype(np.int64)


class Reads(NamedTuple):
    """What a policy reads and keeps, batch by batch, in the order of the trace.

    ids: (m,) int32, the units of each batch, ascending within it.
    starts: (batches + 1,) int64; batch b reads ids[starts[b] : starts[b + 1]].
    token, layer: (batches,) int64, whose batch it is. Every token and layer has at least one, perhaps
        empty; a bypass that is longer than its buffer has several (decision 8).
    resident: (tokens, layers) int64, units in memory afterwards.
    loaded: (tokens, layers) int64, units that were put into memory.
    moved: (tokens, layers) int64, rows that the placement moved in memory.
    """

    ids: npt.NDArray[np.int32]
    starts: Counts
    token: Counts
    layer: Counts
    resident: Counts
    loaded: Counts
    moved: Counts


def trace_of(
    predicted: Sequence[Sequence[Ids]], units: Sequence[int], first_counted: int = 0
) -> ActivationTrace:
    """Make a trace from the ids that are active.

    Args:
        predicted: [token][layer] → strictly ascending ids.
        units: how many units each layer has, each at least 1.
        first_counted: the first token whose costs count, less than the number of tokens.

    Returns:
        The trace.

    Raises:
        IdsError: ids are not strictly ascending, or not those of units of their layer.
        DomainError: there is no layer, a layer has no unit, or there is no token to count.
    """
    if not units or min(units) < 1:
        raise DomainError(
            f"a trace needs at least one layer, and each layer at least one unit, not units of {tuple(units)}"
        )
    if not 0 <= first_counted < len(predicted):
        raise DomainError(
            f"a trace of {len(predicted)} tokens has no token {first_counted} from which to count; "
            f"give a number from 0 to {len(predicted) - 1}"
        )
    active = [ascending_ids(ids, n) for layers in predicted for ids, n in zip(layers, units, strict=True)]
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in active], dtype=np.int64)])
    return ActivationTrace(
        tuple(map(int, units)), np.concatenate(active).astype(np.int32), starts, first_counted
    )


def trace_tokens(trace: ActivationTrace, start: int, stop: int) -> ActivationTrace:
    """Cut tokens out of a trace; all of them count.

    Args:
        trace: a trace.
        start: the first token.
        stop: the token after the last.

    Returns:
        A trace of the tokens start … stop − 1.

    Raises:
        DomainError: the trace does not have these tokens.
    """
    if not 0 <= start < stop <= trace.tokens:
        raise DomainError(f"a trace of {trace.tokens} tokens has no tokens {start} … {stop - 1}")
    starts = trace.starts[start * trace.layers : stop * trace.layers + 1]
    return ActivationTrace(trace.units, trace.ids[starts[0] : starts[-1]], starts - starts[0])


def token_uses(trace: ActivationTrace, token: int) -> tuple[slice, Counts, Counts]:
    """The uses of a token.

    Args:
        trace: a trace.
        token: which token.

    Returns:
        Where its uses are in `trace.ids`; their units, (m,) int64, numbered through all layers, so that the
        units of a layer follow those of the layers before; and how many uses each layer has, (layers,).
    """
    starts = trace.starts[token * trace.layers : (token + 1) * trace.layers + 1]
    at, counts = slice(int(starts[0]), int(starts[-1])), np.diff(starts)
    return at, trace.ids[at] + np.cumsum([0, *trace.units[:-1]]).repeat(counts), counts
