"""Models of the caches that take one unit at a time, and random pools of memory for them."""

from collections import deque

import numpy as np
from hypothesis import strategies as st

from flashref.conformance.strategies import active_sets
from flashref.simulate.trace import trace_of

SIZES = st.integers(1, 5)
EQUAL_SIZES = st.shared(st.integers(1, 3))


@st.composite
def pools(draw, sizes=SIZES):
    """A trace, the sizes of its units, and a capacity from nothing to more than everything."""
    units = draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    sets = [[draw(active_sets(n)) for n in units] for _ in range(draw(st.integers(1, 10)))]
    trace = trace_of(sets, units, draw(st.integers(0, len(sets) - 1)))
    bytes_of = tuple(draw(sizes) for _ in units)
    everything = sum(n * size for n, size in zip(units, bytes_of, strict=True))
    return trace, bytes_of, draw(st.integers(0, everything + 3))


class Cache:
    """The module's three steps, by the letter; a subclass says who leaves."""

    def __init__(self, sizes, capacity):
        self.sizes, self.capacity, self.kept = sizes, capacity, set()

    def bytes_of(self, units):
        return sum(self.sizes[layer] for layer, _ in units)

    def serve(self, token, batch):
        hits = [unit for unit in batch if unit in self.kept]
        misses = [unit for unit in batch if unit not in self.kept]
        new = []
        for unit in misses:
            if self.bytes_of([*hits, *new, unit]) <= self.capacity:
                new.append(unit)
        self.use(token, batch, hits)
        while self.bytes_of(self.kept) + self.bytes_of(new) > self.capacity:
            self.kept.discard(self.leaves(set(hits)))
        self.kept.update(new)
        self.keep(token, hits, new)
        return misses, new

    def use(self, token, batch, hits):
        pass

    def keep(self, token, hits, new):
        pass


class LRU(Cache):
    def __init__(self, sizes, capacity):
        super().__init__(sizes, capacity)
        self.order = []  # the earliest last use first

    def leaves(self, busy):
        unit = next(unit for unit in self.order if unit not in busy)
        self.order.remove(unit)
        return unit

    def keep(self, token, hits, new):
        batch = sorted([*hits, *new])
        self.order = [unit for unit in self.order if unit not in batch] + batch


class LFU(LRU):
    def __init__(self, sizes, capacity, period):
        super().__init__(sizes, capacity)
        self.period, self.counts, self.token = period, {}, 0

    def use(self, token, batch, hits):
        if token != self.token and token % self.period == 0:
            self.counts = {unit: count // 2 for unit, count in self.counts.items()}
        self.token = token
        for unit in batch:
            self.counts[unit] = self.counts.get(unit, 0) + 1

    def leaves(self, busy):
        unit = min(
            (unit for unit in self.order if unit not in busy), key=self.counts.get
        )  # the first of equals
        self.order.remove(unit)
        return unit


class S3FIFO(Cache):
    """Queues as deques from tail to head; the ghost as a dict in the order of its names."""

    def __init__(self, sizes, capacity, small_percent):
        super().__init__(sizes, capacity)
        self.small_share = capacity * small_percent // 100
        self.main_share = capacity - self.small_share
        self.small, self.main, self.ghost, self.frequency = deque(), deque(), {}, {}
        self.has_evicted = False

    def use(self, token, batch, hits):
        for unit in hits:
            self.frequency[unit] = min(self.frequency[unit] + 1, 3)
        self.known = {unit for unit in batch if unit in self.ghost}
        self.phase = "main first"

    def leaves(self, busy):
        self.has_evicted = True
        over = self.bytes_of(self.main) > self.main_share and any(unit not in busy for unit in self.main)
        if self.phase == "main first" and over:
            return self.main_gives(busy)
        self.phase = "small"
        while self.small:
            unit = self.small.popleft()
            if self.frequency[unit] <= 1 and unit not in busy:
                self.ghost[unit] = None
                return unit
            self.frequency[unit] = 0
            self.main.append(unit)
        return self.main_gives(busy)

    def main_gives(self, busy):
        while True:
            unit = self.main.popleft()
            if self.frequency[unit] == 0 and unit not in busy:
                return unit
            self.frequency[unit] = max(self.frequency[unit] - 1, 0)
            self.main.append(unit)

    def keep(self, token, hits, new):
        for unit in self.known & set(new):
            self.ghost.pop(unit)
        while self.bytes_of(self.ghost) > self.main_share:
            self.ghost.pop(next(iter(self.ghost)))
        for unit in new:
            full = not self.has_evicted and self.bytes_of(self.small) >= self.small_share
            (self.main if unit in self.known or full else self.small).append(unit)
            self.frequency[unit] = 0


class Pinned(Cache):
    def __init__(self, sizes, capacity, batches):
        super().__init__(sizes, capacity)
        uses = [unit for batch in batches for unit in batch]
        self.hot = []
        for unit in sorted(set(uses), key=lambda unit: (-uses.count(unit), unit)):
            if self.bytes_of([*self.hot, unit]) > capacity:
                break
            self.hot.append(unit)

    def serve(self, token, batch):
        misses = [unit for unit in batch if unit not in self.kept]
        new = [unit for unit in misses if unit in self.hot]
        self.kept.update(new)
        return misses, new


def batches_of(trace):
    for token in range(trace.tokens):
        for layer in range(trace.layers):
            yield token, layer, [(layer, int(i)) for i in trace.active(token, layer)]


def counted(reads, trace):
    """Units that are read from first_counted on."""
    return sum(np.diff(reads.starts)[reads.token >= trace.first_counted].tolist())
