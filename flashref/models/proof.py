"""The proof that reading from flash changes nothing: every step against the definition, in memory."""

from collections.abc import Iterable, Sequence

import numpy as np

from flashref.bundle import Layout
from flashref.decode import Semantics, Step
from flashref.ffn import dense_ffn, sparse_ffn
from flashref.models.budget import Budget
from flashref.types import FFN, Array, Extent, Ids, Read, Reader, Vector, same


class Proof:
    """What was checked of a run, step by step, from the history of predictions and weights in memory.

    ffns: a layer's FFN from the checkpoint, or None: then only the resident sets are checked; exact: the
    predictor is, so that the dense FFN must come out. `failure` says what did not hold first, None if all
    did; `overflows` counts the times that a layer's rows did not hold the whole window, `bypassed` the rows
    that were read and not kept.
    """

    def __init__(self, ffns: Sequence[FFN] | None, budget: Budget, semantics: Semantics, exact: bool) -> None:
        self._ffns, self._budget, self._semantics, self._exact = ffns, budget, semantics, exact
        self.steps, self.overflows, self.bypassed = 0, 0, 0
        self.failure: str | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the history: the next token finds empty windows."""
        self._kept: dict[int, list[Ids]] = {}
        self._start: dict[int, int] = {}

    def observe(self, layer: int, x: Vector, y: Vector, step: Step) -> None:
        """Check one step of one layer: the resident set, and the output to the bit."""
        resident, bypass = self._defined_sets(layer, set(step.predicted.tolist()))
        if set(step.resident.tolist()) != resident:
            self._fail(f"layer {layer}: the resident set is not the union of the kept sets in the window")
        if self._ffns is not None:
            ffn = self._ffns[layer]
            chosen = self._semantics(step.predicted, np.array(sorted(resident | bypass), np.int64))
            expected = dense_ffn(x, ffn) if self._exact else sparse_ffn(x, ffn, chosen)
            if not same(y, expected):
                self._fail(f"layer {layer}: the output differs from what the definition gives in memory")
        self.steps += 1
        self.bypassed += len(bypass)

    def checking_reader(self, read: Reader, layouts: Iterable[Layout], stored: Iterable[FFN]) -> Reader:
        """The same reader, which compares every byte that it gives with the checkpoint's.

        stored: a layer's FFN in the stored dtype; bundles are its rows one after the other, then zeros.
        """
        tables = [(layout, _padded_rows(layout, ffn)) for layout, ffn in zip(layouts, stored, strict=True)]

        def expected_bytes(offset: int, length: int) -> Array | None:
            for layout, table in tables:
                if 0 <= offset - layout.start < table.size:
                    return table[offset - layout.start : offset - layout.start + length]
            return None

        def checked(extents: tuple[Extent, ...]) -> Read:
            result = read(extents)
            for (offset, length), buffer in zip(extents, result.buffers, strict=True):
                expected = expected_bytes(offset, length)
                # Behind a layer's last bundle a read may run on to the end of its block.
                if expected is None or buffer[: expected.size].tobytes() != expected.tobytes():
                    self._fail(f"the {length} bytes at {offset} are not the checkpoint's")
            return result

        return checked

    def _defined_sets(self, layer: int, predicted: set[int]) -> tuple[set[int], set[int]]:
        """C_t and the bypass by decisions 1, 2 and 8, from the list of kept sets and nothing else."""
        kept, capacity = self._kept.setdefault(layer, []), self._budget.capacities[layer]

        def union(first: int) -> set[int]:
            return set().union(*(ids.tolist() for ids in kept[first:]))

        t, window = len(kept), self._budget.window
        before = union(self._start.get(layer, 0))
        start = full = max(self._start.get(layer, 0), t - window + 1)
        while start < t and len(predicted | union(start)) > capacity:
            start += 1
        self.overflows += start > full or len(predicted) > capacity
        kept.append(np.array((sorted(predicted & before) + sorted(predicted - before))[:capacity], np.int64))
        self._start[layer] = start
        after = union(start)
        if t >= window:
            kept[t - window] = np.zeros(0, np.int64)  # it never comes back
        return after, predicted.difference(kept[t].tolist())

    def _fail(self, what: str) -> None:
        self.failure = self.failure or what


def _padded_rows(layout: Layout, ffn: FFN) -> Array:
    """The bytes of a layer's bundles as they lie on flash, by the definition: (n · stride,) uint8."""
    table = np.zeros((layout.n, layout.stride), np.uint8)
    rows = [np.ascontiguousarray(getattr(ffn, field)).view(np.uint8) for field in layout.fields]
    table[:, : layout.bundle_bytes] = np.concatenate(rows, axis=1)
    return (table if layout.order is None else table[layout.order]).reshape(-1)
