"""The sliding window: which neurons stay in DRAM after each token. Chapter: specs/30-window.md.

Satisfies: WIN-1 to WIN-9.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.types import NEVER, DomainError, Ids, ascending_ids


class Window(NamedTuple):
    """The neurons of the last k tokens of one layer, as far as they fit (paper §3.1.2; decisions 1 and 8).

    k: tokens; capacity: slots of the DRAM matrix; token: number of the next token; last: (n,) int64, the
    neurons' stamps: while a neuron is resident the last token that kept it, else NEVER (decision 9).
    """

    k: int
    capacity: int
    token: int
    last: npt.NDArray[np.int64]


class Delta(NamedTuple):
    """What one token changes: ids to read and keep, to drop, and to read and use once. Disjoint."""

    load: Ids
    evict: Ids
    bypass: Ids


def empty_window(n: int, k: int, capacity: int) -> Window:
    """The window of a layer before its first token: nothing is resident.

    Args:
        n: neurons of the layer, ≥ 1.
        k: tokens that the window remembers, ≥ 1.
        capacity: slots of the layer's DRAM matrix, ≥ 0.

    Raises:
        DomainError: a number is too small.

    Requirement: WIN-1.
    """
    if n < 1 or k < 1 or capacity < 0:
        raise DomainError(
            f"a window needs n ≥ 1 neurons, k ≥ 1 tokens and capacity ≥ 0 rows, not {n}, {k}, {capacity}"
        )
    return Window(k, capacity, 0, np.full(n, NEVER, np.int64))


def resident_neurons(window: Window) -> Ids:
    """The ids in DRAM, C_t: every neuron whose stamp is not NEVER (paper §3.3). Requirement: WIN-2."""
    return np.flatnonzero(window.last != NEVER)


def window_update(window: Window, active: npt.ArrayLike) -> tuple[Window, Delta]:
    """The window after one more token, and what to load, evict and bypass.

    Args:
        window: before the token; it is not changed.
        active: (m,) strictly ascending ids, the set P_t; decoding gives it the token's predicted neurons.

    Returns:
        The window after the token, and its Delta: three disjoint, ascending sets.

    Raises:
        IdsError: the ids are out of range or not strictly ascending.

    Paper §3.1.2, Fig. 4b. Decisions 1, 2, 8 and 9: the window includes the token itself, evicts before it
    loads, and gives way to the capacity. Requirements: WIN-3 to WIN-9.
    """
    n = len(window.last)
    predicted = np.zeros(n, bool)
    predicted[ascending_ids(active, n)] = True
    was_resident = window.last != NEVER

    # The oldest tokens leave until the union fits; the token itself stays even if it does not fit. Where the
    # window began before need not be remembered: the stamps of neurons that left are cleared.
    start = max(window.token - window.k + 1, 0)
    while start < window.token and _union(window, start, predicted).sum() > window.capacity:
        start += 1

    # Resident neurons are kept first, then new ones in ascending id: a stable sort by newness.
    by_newness = np.argsort(~was_resident, kind="stable")
    predicted_by_newness = by_newness[predicted[by_newness]]
    kept = np.zeros(n, bool)
    kept[predicted_by_newness[: window.capacity]] = True

    stays = _union(window, start, kept)
    last = np.where(stays, np.where(kept, window.token, window.last), NEVER)
    delta = Delta(
        load=np.flatnonzero(stays & ~was_resident),
        evict=np.flatnonzero(was_resident & ~stays),
        bypass=np.flatnonzero(predicted & ~kept),
    )
    return window._replace(token=window.token + 1, last=last), delta


def _union(window: Window, start: int, newest: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask of the kept sets of tokens start … t − 1, united with the newest token's."""
    return newest | (window.last >= start)
