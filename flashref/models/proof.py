"""The proof that reading from flash changes nothing: every step against the definition, in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from flashref.bundle import Layout
from flashref.decode import Semantics, Step
from flashref.definitions import WindowStep, window_model
from flashref.ffn import dense_ffn, sparse_ffn
from flashref.models.budget import Budget
from flashref.types import FFN, Array, Extent, Read, Reader, Vector, same

Observe = Callable[[int, Vector, Vector, Step], None]  # layer, x, y, what happened


class Proven(NamedTuple):
    """What a proof says so far.

    verified: True if everything held, False if something did not, None if there are no weights in memory to
    judge by, so that only the resident sets were checked; failure: what did not hold first; steps: how many
    steps of a layer were checked.
    """

    verified: bool | None
    failure: str | None
    steps: int


class Proof:
    """Checks the steps of a run, from the history of predictions and from weights in memory.

    `failure` says what did not hold first, and is None while everything does; `steps` counts the steps that
    were checked, `overflows` the times that a layer's rows did not hold the whole window, and `bypassed` the
    rows that were read and not kept.
    """

    def __init__(self, ffns: Sequence[FFN] | None, budget: Budget, semantics: Semantics, exact: bool) -> None:
        """A proof that has seen nothing.

        Args:
            ffns: the checkpoint's FFN of every layer; None: only resident sets are checked.
            budget: the window, and the rows of every layer.
            semantics: which rows are summed.
            exact: whether the predictor is an oracle, so that the dense FFN must come out.
        """
        self.ffns = ffns
        self._budget, self._semantics, self._exact = budget, semantics, exact
        self.steps, self.overflows, self.bypassed = 0, 0, 0
        self.failure: str | None = None

    @property
    def verdict(self) -> Proven:
        """Whether everything that was checked so far held."""
        held = None if self.ffns is None else True
        return Proven(held if self.failure is None else False, self.failure, self.steps)

    def observer(self) -> Observe:
        """A function that checks every step of one text, which begins with empty windows."""
        windows: dict[int, Callable[[set[int]], WindowStep]] = {}

        def observe(layer: int, x: Vector, y: Vector, step: Step) -> None:
            if layer not in windows:
                windows[layer] = defined_window(self._budget.window, self._budget.capacities[layer])
            self._check(layer, x, y, step, windows[layer](set(step.predicted.tolist())))

        return observe

    def _check(self, layer: int, x: Vector, y: Vector, step: Step, due: WindowStep) -> None:
        """Check one step of one layer: the resident set, and the output to the bit."""
        if set(step.resident.tolist()) != due.resident:
            self._fail(f"layer {layer}: the resident set is not the union of the kept sets in the window")
        if self.ffns is not None:
            ffn = self.ffns[layer]
            in_dram = np.array(sorted(due.resident | due.bypass), np.int64)
            chosen = self._semantics(step.predicted, in_dram)
            expected = dense_ffn(x, ffn) if self._exact else sparse_ffn(x, ffn, chosen)
            if not same(y, expected):
                self._fail(f"layer {layer}: the output differs from what the definition gives in memory")
        self.steps += 1
        self.overflows += due.left_early or bool(due.bypass)
        self.bypassed += len(due.bypass)

    def checking_reader(self, read: Reader, layouts: Iterable[Layout], stored: Iterable[FFN]) -> Reader:
        """A reader that gives what another gives, and compares every byte with the checkpoint's.

        Args:
            read: a reader of the image.
            layouts: of each layer's bundles.
            stored: each layer's FFN in the stored dtype; its bundles are its rows, then zeros.

        Returns:
            The reader that compares.
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

    def _fail(self, what: str) -> None:
        self.failure = self.failure or what


def defined_window(k: int, capacity: int) -> Callable[[set[int]], WindowStep]:
    """`window_model`, which goes through a whole text, as a function that is called token by token.

    Args:
        k: tokens that the window remembers.
        capacity: rows of the layer's DRAM matrix.

    Returns:
        A function from the neurons that a token predicts to what the window does, for one text.
    """
    waiting: deque[set[int]] = deque()
    steps = window_model(k, capacity, iter(waiting.popleft, None))

    def step(predicted: set[int]) -> WindowStep:
        waiting.append(predicted)
        return next(steps)

    return step


def _padded_rows(layout: Layout, ffn: FFN) -> Array:
    """The bytes of a layer's bundles as they lie on flash, by the definition: (n · stride,) uint8."""
    table = np.zeros((layout.n, layout.stride), np.uint8)
    rows = [np.ascontiguousarray(getattr(ffn, field)).view(np.uint8) for field in layout.fields]
    table[:, : layout.bundle_bytes] = np.concatenate(rows, axis=1)
    return (table if layout.order is None else table[layout.order]).reshape(-1)
