"""Orders of neurons on flash: neurons that lie beside each other may be fetched by one read.

An order is learnt from the warm-up tokens. If there are none, it is learnt from the whole trace, as only an
oracle could.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from flashref.simulate.statistics import closest_friends
from flashref.simulate.trace import ActivationTrace, trace_tokens
from flashref.types import Ids

# From a trace to the neuron at each place of each layer; None where each neuron lies at its own number.
Order = Callable[[ActivationTrace], Sequence[Ids | None]]
FRIENDS = 8  # how many candidates each neuron has for its two neighbours


def natural(trace: ActivationTrace) -> list[None]:
    """Keep the order of the checkpoint.

    Args:
        trace: which units each token activates.

    Returns:
        None for each layer.
    """
    return [None] * trace.layers


def by_use(trace: ActivationTrace) -> list[Ids]:
    """Put the neurons that are used most first, and of equals the lower id.

    Args:
        trace: which units each token activates.

    Returns:
        For each layer the neuron at each place, (n,) int64.
    """
    profile = _profile(trace)
    orders = []
    for layer, n in enumerate(profile.units):
        used = [profile.active(token, layer) for token in range(profile.tokens)]
        orders.append(np.argsort(-np.bincount(np.concatenate(used), minlength=n), kind="stable"))
    return orders


def by_coactivation(trace: ActivationTrace) -> list[Ids]:
    """Put neurons that are active together beside each other, the closest pairs first.

    A pair becomes neighbours if both neurons have a free side and the link closes no ring. The chains follow
    each other from their lower ends on, the lowest end first.

    Args:
        trace: which units each token activates.

    Returns:
        For each layer the neuron at each place, (n,) int64.
    """
    profile = _profile(trace)
    return [_chains(profile, layer) for layer in range(profile.layers)]


ORDERS: Mapping[str, Order] = MappingProxyType(
    {"natural": natural, "use": by_use, "co-activation": by_coactivation}
)


def _profile(trace: ActivationTrace) -> ActivationTrace:
    return trace_tokens(trace, 0, trace.first_counted or trace.tokens)


def _chains(profile: ActivationTrace, layer: int) -> Ids:
    n = profile.units[layer]
    if n == 1:
        return np.zeros(1, np.int64)
    friends = closest_friends(profile, layer, min(FRIENDS, n - 1))
    used = np.bincount(
        np.concatenate([profile.active(token, layer) for token in range(profile.tokens)]), minlength=n
    )
    together = np.rint(friends.share * used[:, None])
    pairs = np.argsort(-together, axis=None, kind="stable")
    first, rank = np.divmod(pairs[together.reshape(-1)[pairs] > 0], together.shape[1])
    neighbours: list[list[int]] = [[] for _ in range(n)]
    chain = list(range(n))  # for each neuron one that is nearer to the representative of its chain

    def representative(neuron: int) -> int:
        while chain[neuron] != neuron:
            chain[neuron] = neuron = chain[chain[neuron]]
        return neuron

    for a, b in zip(first.tolist(), friends.ids[first, rank].tolist(), strict=True):
        if len(neighbours[a]) < 2 and len(neighbours[b]) < 2 and representative(a) != representative(b):
            neighbours[a].append(b)
            neighbours[b].append(a)
            chain[representative(a)] = representative(b)
    return _walk(neighbours)


def _walk(neighbours: list[list[int]]) -> npt.NDArray[np.int64]:
    """The neurons chain by chain, each chain from its lower end on."""
    placed = [False] * len(neighbours)
    order: list[int] = []
    for end in range(len(neighbours)):
        before, neuron = -1, end
        while len(neighbours[end]) < 2 and not placed[neuron]:
            placed[neuron] = True
            order.append(neuron)
            onward = [each for each in neighbours[neuron] if each != before]
            before, neuron = neuron, onward[0] if onward else neuron
    return np.array(order, np.int64)
