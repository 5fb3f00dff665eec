"""The proof: each step that reads from flash is compared with the definition, computed in memory."""

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
    """The verdict of a proof.

    Attributes:
        verified: True if everything held, and False if something did not; None if everything held but there
            are no weights in memory, so that only the resident sets were checked.
        failure: what did not hold first; None if everything held.
        steps: how many steps were checked; a step is one token in one layer.
    """

    verified: bool | None
    failure: str | None
    steps: int


class Proof:
    """Checks every step, with the definition of the window and with weights in memory.

    Attributes:
        ffns: the checkpoint's FFNs; None: only resident sets are checked.
        failure: what did not hold first; None while everything holds.
        steps: how many steps were checked.
        overflows: how often the rows of a layer did not hold a whole window.
        bypassed: how many rows were read and not kept.
    """

    def __init__(self, ffns: Sequence[FFN] | None, budget: Budget, semantics: Semantics, exact: bool) -> None:
        """Begin a proof.

        Args:
            ffns: the checkpoint's FFN of each layer; None: only resident sets are checked.
            budget: the window, and the rows of each layer.
            semantics: chooses the neurons that are summed.
            exact: whether the predictor misses no active neuron, so that the output must be the dense FFN's.
        """
        self.ffns = ffns
        self._budget, self._semantics, self._exact = budget, semantics, exact
        self.steps, self.overflows, self.bypassed = 0, 0, 0
        self.failure: str | None = None

    @property
    def verdict(self) -> Proven:
        """The verdict on everything that was checked so far."""
        held = None if self.ffns is None else True
        return Proven(held if self.failure is None else False, self.failure, self.steps)

    def observer(self) -> Observe:
        """Return a function that checks every step of one text, which begins with empty windows."""
        windows: dict[int, Callable[[set[int]], WindowStep]] = {}

        def observe(layer: int, x: Vector, y: Vector, step: Step) -> None:
            if layer not in windows:
                windows[layer] = defined_window(self._budget.window, self._budget.capacities[layer])
            self._check(layer, x, y, step, windows[layer](set(step.predicted.tolist())))

        return observe

    def _check(self, layer: int, x: Vector, y: Vector, step: Step, due: WindowStep) -> None:
        """Check the resident set of one step, and its output to the bit."""
        if set(step.resident.tolist()) != due.resident:
            self._fail(f"layer {layer}: the resident set is not what the window keeps")
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
        """Make a reader that compares every byte that another one reads with the checkpoint's.

        Args:
            read: a reader of the image.
            layouts: the layout of each layer's bundles.
            stored: each layer's FFN in the stored dtype.

        Returns:
            A reader that returns what `read` returns; a wrong byte is a failure of the proof.
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
                # A read may go on behind a layer's last bundle, to the end of its block.
                if expected is None or buffer[: expected.size].tobytes() != expected.tobytes():
                    self._fail(f"the {length} bytes at {offset} are not the checkpoint's")
            return result

        return checked

    def _fail(self, what: str) -> None:
        self.failure = self.failure or what


def defined_window(k: int, capacity: int) -> Callable[[set[int]], WindowStep]:
    """Make a function for one token out of `window_model`, which goes through a whole text.

    Args:
        k: the window, in tokens.
        capacity: the rows of the layer's DRAM matrix.

    Returns:
        A function for one text: from the neurons that a token predicts to what the window does.
    """
    waiting: deque[set[int]] = deque()
    steps = window_model(k, capacity, iter(waiting.popleft, None))

    def step(predicted: set[int]) -> WindowStep:
        waiting.append(predicted)
        return next(steps)

    return step


def _padded_rows(layout: Layout, ffn: FFN) -> Array:
    """Lay out a layer's bundles as the definition says, padded with zeros: (n · stride,) uint8."""
    table = np.zeros((layout.n, layout.stride), np.uint8)
    rows = [np.ascontiguousarray(getattr(ffn, field)).view(np.uint8) for field in layout.fields]
    table[:, : layout.bundle_bytes] = np.concatenate(rows, axis=1)
    return (table if layout.order is None else table[layout.order]).reshape(-1)
