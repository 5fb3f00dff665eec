"""Traces of activation: which neurons are predicted for each token, layer by layer.

A unit is an id with a size in bytes: a neuron's bundle here, an expert of a mixture just as well.
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
    """The active units of every token and layer; a token's layers are decoded in order.

    units: of each layer; ids: (m,) int32, ascending within a layer of a token; starts: (tokens·layers + 1,)
    int64, token t's layer l is ids[starts[t·layers + l] : starts[t·layers + l + 1]];
    first_counted: tokens before it warm what is kept, and no cost of theirs is counted (decision 21).
    """

    units: tuple[int, ...]
    ids: npt.NDArray[np.int32]
    starts: Counts
    first_counted: int = 0

    @property
    def layers(self) -> int:
        """How many layers."""
        return len(self.units)

    @property
    def tokens(self) -> int:
        """How many tokens, the uncounted ones included."""
        return (len(self.starts) - 1) // len(self.units)

    def active(self, token: int, layer: int) -> Ids:
        """The ids of one token in one layer."""
        at = token * self.layers + layer
        return self.ids[self.starts[at] : self.starts[at + 1]].astype(np.int64)


class Reads(NamedTuple):
    """What a policy reads and keeps, batch by batch, in the order of the trace.

    ids: (m,) int32, ascending within a batch; starts: (batches + 1,) int64, as in ActivationTrace; token,
    layer: (batches,) int64, whose batch it is: at least one a token and layer, perhaps an empty one (decision
    8: a long bypass has several). resident, loaded, moved: (tokens, layers) int64, units that are kept
    afterwards, units that were put into memory, rows that the placement moved inside it.
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
    """A trace from the ids that are active.

    Args:
        predicted: [token][layer] → strictly ascending ids.
        units: of each layer.
        first_counted: the first token whose costs count, less than the number of tokens.

    Raises:
        IdsError: ids are not strictly ascending, or are none of their layer.
        DomainError: a layer has no unit, or there is no token to count.
    """
    if not units or min(units) < 1:
        raise DomainError(f"a trace needs a layer, and every layer a unit, not units of {tuple(units)}")
    if not 0 <= first_counted < len(predicted):
        raise DomainError(
            f"a trace of {len(predicted)} tokens has none to count from token {first_counted} on"
        )
    active = [ascending_ids(ids, n) for layers in predicted for ids, n in zip(layers, units, strict=True)]
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in active], dtype=np.int64)])
    return ActivationTrace(
        tuple(map(int, units)), np.concatenate(active).astype(np.int32), starts, first_counted
    )


def trace_tokens(trace: ActivationTrace, start: int, stop: int) -> ActivationTrace:
    """Tokens start … stop − 1 of a trace, all of them counted.

    Raises:
        DomainError: there are no such tokens.
    """
    if not 0 <= start < stop <= trace.tokens:
        raise DomainError(f"a trace of {trace.tokens} tokens has no tokens {start} … {stop - 1}")
    starts = trace.starts[start * trace.layers : stop * trace.layers + 1]
    return ActivationTrace(trace.units, trace.ids[starts[0] : starts[-1]], starts - starts[0])


def token_uses(trace: ActivationTrace, token: int) -> tuple[slice, Counts, Counts]:
    """A token's uses: where in the trace they are, of which units, and how many each layer has.

    Units are numbered through all layers: unit i of layer l after all units of the layers before.
    """
    starts = trace.starts[token * trace.layers : (token + 1) * trace.layers + 1]
    at, counts = slice(int(starts[0]), int(starts[-1])), np.diff(starts)
    return at, trace.ids[at] + np.cumsum([0, *trace.units[:-1]]).repeat(counts), counts
