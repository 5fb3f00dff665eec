"""Wrong tables of rows: holes, moves, stale rows."""

import numpy as np

from mutants.engine import Table
from mutants.registry import plant


@plant("cache: swap-with-last where the hole is the last row", "SLT-2", "SLT-8")
class MovesTheLastRowOntoItself(Table):
    """Forgets to shorten where the hole is the last row."""

    def swap_with_last(self, evict, load, rows):
        if self.ids and self.ids[-1] in evict:
            evict = evict - {self.ids[-1]}
        return super().swap_with_last(evict, [i for i in load if len(self.ids) < self.capacity], rows)


@plant("cache: swap-with-last where the last row is itself deleted", "SLT-2", "SLT-8", "DEC-2")
class FillsAHoleWithARowThatLeaves(Table):
    def close(self, evict, count):
        tail = list(range(count, len(self.ids)))
        holes = [j for j in range(count) if self.ids[j] in evict]
        for hole in holes:
            self.move(tail.pop(), hole)
        del self.ids[count:], self.rows[count:]
        return len(holes)


@plant("counters: moved rows", "SLT-4", "SLT-6")
class CountsEveryEvictionAsAMove(Table):
    def close(self, evict, count):
        super().close(evict, count)
        return len(evict)


@plant("counters: moved rows", "SLT-6")
class MovesAsManyAsSwapWithLastWould(Table):
    def fill_holes(self, evict, load, rows):
        count = len(self.ids) - len(evict)
        moved = sum(neuron in evict for neuron in self.ids[:count])
        super().fill_holes(evict, load, rows)
        return moved


@plant("cache: placement", "SLT-6")
class FillsTheHighestHolesFirst(Table):
    def fill_holes(self, evict, load, rows):
        holes = [j for j, neuron in enumerate(self.ids) if neuron in evict][::-1][: len(load)]
        for j in holes:
            evict = evict - {self.ids[j]}
            self.ids[j], self.rows[j] = load.pop(0), rows.pop(0)
        moved = self.close(evict, len(self.ids) - len(evict))
        self.append(load, rows)
        return moved


@plant("cache: a row under the wrong id", "SLT-8", "DEC-2")
class PutsNewRowsInTheWrongSlots(Table):
    def append(self, load, rows):
        super().append(load, rows[::-1])


@plant("cache: a row under the wrong id", "SLT-8", "DEC-2")
class MovesTheIdAndNotTheRow(Table):
    def move(self, source, target):
        self.ids[target] = self.ids[source]


@plant("concurrency: a slot published as free before its bytes are released (colibri)", "SLT-8", "DEC-2")
class WritesNewRowsBeforeItMovesOldOnes(Table):
    def swap_with_last(self, evict, load, rows):
        count = len(self.ids) - len(evict)
        written = dict(enumerate(rows, count))
        self.rows = [written.get(j, row) for j, row in enumerate(self.rows)]
        return super().swap_with_last(evict, load, rows)


@plant("cache: a ring of slots wraps (llama.cpp)", "SLT-2", "SLT-8", "DEC-2")
class WrapsAroundARingOfSlots(Table):
    """New rows go where the last ones ended, whoever is there."""

    def append(self, load, rows):
        for neuron, row in zip(load, rows, strict=True):
            self.next = getattr(self, "next", 0) % self.capacity
            if self.next < len(self.ids):
                self.ids[self.next], self.rows[self.next] = neuron, row
            else:
                super().append([neuron], [row])
            self.next += 1


@plant("cache: stale rows", "SLT-2", "SLT-8")
class LeavesHolesThatNoNewRowTakes(Table):
    def fill_holes(self, evict, load, rows):
        if len(evict) <= len(load):
            return super().fill_holes(evict, load, rows)
        stays = set(sorted(evict)[len(load) :])
        super().fill_holes(evict - stays, load, rows)
        return 0


@plant("cache: rows moved as if of one width", "SLT-8", "DEC-2")
class MovesTheFirstFieldOnly(Table):
    def move(self, source, target):
        row = np.array(self.rows[target])
        row[0] = self.rows[source][0]
        self.ids[target], self.rows[target] = self.ids[source], row


@plant("bytes: rows pass through float16", "SLT-8")
class KeepsRowsInFp16(Table):
    def append(self, load, rows):
        with np.errstate(over="ignore"):
            super().append(load, [np.asarray(row).astype(np.float16).astype(self.dtype) for row in rows])


@plant("what fits is not asked", "SLT-3", "IOP-7")
class LoadsWhatIsThereAlready(Table):
    def check(self, load, evict, rows):
        new = ~np.isin(load, self.ids)
        super().check(load[new], evict, rows[new])

    def step(self, evict, load, rows):
        there = set(self.ids)
        new = [j for j, neuron in enumerate(load) if neuron not in there]
        return super().step(evict, [load[j] for j in new], [rows[j] for j in new])


@plant("what fits is not asked", "SLT-3", "IOP-7")
class GrowsBeyondItsCapacity(Table):
    def check(self, load, evict, rows):
        self.capacity = max(self.capacity, len(self.ids) + len(load))
        super().check(load, evict, rows)


@plant("what fits is not asked", "SLT-3", "IOP-7")
class IgnoresAnEvictionOfWhatIsNotThere(Table):
    def check(self, load, evict, rows):
        super().check(load, evict[np.isin(evict, self.ids)], rows)

    def step(self, evict, load, rows):
        return super().step([i for i in evict if i in self.ids], load, rows)


@plant("what fits is not asked", "SLT-9")
class CastsNewRowsToTheMatrix(Table):
    def check(self, load, evict, rows):
        with np.errstate(over="ignore", invalid="ignore"):
            super().check(load, evict, rows.astype(self.dtype))


@plant("what fits is not asked", "SLT-9")
class TakesMoreRowsThanIds(Table):
    def check(self, load, evict, rows):
        super().check(load, evict, rows[: len(load)])

    def step(self, evict, load, rows):
        return super().step(evict, load, rows[: len(load)])
