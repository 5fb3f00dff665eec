"""Wrong windows: who stays in DRAM, and who is read."""

from flashref.types import IdsError
from mutants.adapters import Engine
from mutants.engine import Window
from mutants.registry import plant

# --- The window's length and its order


@plant("cache: the window's length", "WIN-3", "WIN-4", "DEC-7")
class EvictsOneTokenEarly(Window):
    def __init__(self, n, k, capacity):
        super().__init__(n, k, capacity)
        self.k = max(1, k - 1)


@plant("cache: the window's length", "WIN-8", "WIN-3", "WIN-4", "DEC-7")
class EvictsOneTokenLate(Window):
    def __init__(self, n, k, capacity):
        super().__init__(n, k, capacity)
        self.k = k + 1


@plant("concurrency: an eviction guard with its comparison inverted (colibri)", "WIN-3", "WIN-4", "WIN-6")
class EvictsWhileThereIsRoom(Window):
    def oldest(self, predicted):
        t = len(self.kept)
        start = max(self.start, t - self.k + 1)
        while start < t and len(predicted.union(*self.kept[start:])) <= self.capacity:
            start += 1
        return start


@plant("cache: one token too many leaves", "WIN-3", "WIN-4", "DEC-7")
class EvictsOnceMoreThanItMust(Window):
    def oldest(self, predicted):
        t = len(self.kept)
        start = max(self.start, t - self.k + 1)
        while start < t and len(predicted.union(*self.kept[start:])) >= self.capacity:
            start += 1
        return start


@plant("cache: empty active set (NimbleEdge)", "WIN-3", "WIN-4", "DEC-7")
class DoesNotCountATokenThatWantsNothing(Window):
    def token(self, predicted):
        return super().token(predicted) if predicted else ([], [], [])


@plant("cache: stale rows, a stamp compared with t − k", "WIN-6", "WIN-3", "WIN-4", "DEC-2")
class BelievesInRowsByTheirStamps(Window):
    """Whatever the last k tokens kept is taken to be there, also where one of them has left to make room."""

    def token(self, predicted):
        self.resident = set().union(*self.kept[max(0, len(self.kept) - self.k) :])
        return super().token(predicted)


@plant("cache: evicts by use instead of by window", "WIN-3", "WIN-4", "WIN-8", "DEC-7")
class EvictsTheLeastRecentlyUsedNeuron(Window):
    """Fills the rows and drops one neuron at a time, as a cache does that knows no window."""

    def token(self, predicted):
        keeps = self.keeps(predicted)
        before, self.kept = self.resident, [*self.kept, keeps]
        oldest_first = [i for kept in self.kept for i in sorted(kept)]
        last_use = {neuron: use for use, neuron in enumerate(oldest_first)}
        newest = sorted(before | keeps, key=lambda neuron: -last_use[neuron])
        self.resident = keeps | set(newest[: self.capacity])
        return self.delta(before, predicted, keeps)


# --- Rows that are too few


@plant(
    "cache: inserting misses evicts a row that the same token needs (olmlx)",
    "WIN-4",
    "WIN-3",
    "WIN-5",
    "DEC-7",
)
class InsertsBeforeItEvicts(Window):
    def token(self, predicted):
        before = self.resident
        by_age = list(dict.fromkeys(i for kept in self.kept for i in sorted(kept) if i in before))
        load, evict, bypass = super().token(predicted)
        lost = by_age[: max(0, len(before) + len(load) - self.capacity)]
        self.resident -= set(lost)
        return load, sorted({*evict, *lost}), bypass


@plant("cache: capacity 0 crashes (colibri)", "WIN-6", "DEC-2")
class DividesByACapacityOf0(Window):
    def keeps(self, predicted):
        self.load_factor = len(self.resident) / self.capacity
        return super().keeps(predicted)


@plant(
    "cache: capacity below one token's working set leaves it without neurons (ds4)", "WIN-5", "WIN-4", "DEC-2"
)
class ForgetsWhatDoesNotFit(Window):
    def token(self, predicted):
        return super().token(self.keeps(predicted))


@plant("cache: as large as one token's set, and inserts are skipped", "WIN-4", "WIN-3", "DEC-7")
class KeepsNothingOfATokenThatFillsAllRows(Window):
    def keeps(self, predicted):
        there = predicted & self.resident
        return super().keeps(predicted) if len(predicted) < self.capacity else there


@plant("cache: the bypass", "WIN-6", "WIN-3", "WIN-4")
class KeepsTheBypass(Window):
    def keeps(self, predicted):
        return predicted


@plant("cache: order of the bypass", "WIN-7", "WIN-3", "WIN-4")
class KeepsNewRowsFirst(Window):
    def keeps(self, predicted):
        return set(sorted(predicted, key=lambda i: (i in self.resident, i))[: self.capacity])


@plant("cache: order of the bypass", "WIN-7", "WIN-3", "WIN-4")
class KeepsTheSmallestIdsWhateverIsThere(Window):
    def keeps(self, predicted):
        return set(sorted(predicted)[: self.capacity])


@plant("cache: order of the bypass", "WIN-7", "WIN-3", "WIN-4")
class KeepsTheLargestNewIds(Window):
    def keeps(self, predicted):
        return set(sorted(predicted, key=lambda i: (i not in self.resident, -i))[: self.capacity])


# --- What is read and reported


@plant("cache: a resident bitset outlives its buffer (llama.cpp)", "WIN-5", "WIN-4", "DEC-2")
class BelievesThatEvictedRowsAreThere(Window):
    def delta(self, before, predicted, keeps):
        self.seen = getattr(self, "seen", set())
        load, evict, bypass = super().delta(before, predicted, keeps)
        load = [i for i in load if i not in self.seen]
        self.seen |= self.resident if len(self.kept) > 2 else set()
        return load, evict, bypass


@plant("cache: rows read again", "WIN-5", "WIN-4")
class ReadsAgainWhatIsThere(Window):
    def delta(self, before, predicted, keeps):
        load, evict, bypass = super().delta(before, predicted, keeps)
        return sorted({*load, *(keeps & before)}), evict, bypass


@plant("cache: rows dropped and read again in one token", "WIN-4", "WIN-5")
class EvictsAndLoadsWhatTheTokenWantsAgain(Window):
    def delta(self, before, predicted, keeps):
        leaving = before - set().union(*self.kept[self.start : -1])
        load, evict, bypass = super().delta(before, predicted, keeps)
        return sorted({*load, *(leaving & keeps)}), sorted({*evict, *(leaving & keeps)}), bypass


@plant("cache: order", "WIN-4")
class ListsLoadsEvenIdsFirst(Window):
    def delta(self, before, predicted, keeps):
        load, evict, bypass = super().delta(before, predicted, keeps)
        return sorted(load, key=lambda i: (i % 2, i)), evict, bypass


@plant("cache: a first token that finds rows", "WIN-1", "WIN-5", "DEC-1")
class BeginsWithTheFirstRowsThere(Window):
    def __init__(self, n, k, capacity):
        super().__init__(n, k, capacity)
        self.resident = set(range(min(1, capacity)))
        self.kept, self.start = [set(self.resident)], 0


# --- Windows that are shared


@plant("cache: appended once per layer call instead of once per token", "WIN-3", "WIN-4")
class CountsEveryLayerAsAToken(Engine):
    def run_window(self, n, k, capacities, actives):
        every = -(-k // len(capacities))
        return super().run_window(n, every, capacities, actives)


@plant("cache: a key without the layer (aprender, accelerate)", "WIN-1", "WIN-3", "WIN-4")
class SharesOneWindowAmongLayers(Engine):
    def windows(self, n, k, capacities):
        return [self.window(n, k, max(capacities))] * len(capacities)


@plant("cache: state kept across sequences", "WIN-1", "WIN-9", "WIN-3")
class KeepsItsWindowsForTheNextSequence(Engine):
    def run_window(self, n, k, capacities, actives):
        self.of_this_call = None
        return super().run_window(n, k, capacities, actives)

    def windows(self, n, k, capacities):
        self.of_this_call = self.of_this_call or super().windows(n, k, capacities)
        return self.of_this_call


@plant("cache: state kept across calls", "WIN-9", "WIN-1", "IOP-5")
class KeepsItsWindowsForTheNextCall(Engine):
    def __init__(self):
        super().__init__()
        self.warm = {}

    def windows(self, n, k, capacities):
        return self.warm.setdefault((n, k, *capacities), super().windows(n, k, capacities))


@plant("cache: mutates, then throws; later answers are silently wrong (NimbleEdge)", "IOP-7")
class RemembersATokenThatItRefused(Engine):
    def __init__(self):
        super().__init__()
        self.left_over = set()

    def update(self, window, active):
        if self.left_over:
            window.resident, self.left_over = window.resident | self.left_over, set()
        try:
            return super().update(window, active)
        except IdsError:
            self.left_over = {i for i in active.tolist() if 0 <= i < window.n}
            raise


@plant("ids: unsorted ones accepted", "TYP-2", "IOP-7")
class SortsTheIdsOfAToken(Window):
    def ids(self, ids):
        return super().ids(sorted(set(ids.tolist())))


@plant("what fits is not asked", "IOP-7")
class TakesAWindowOf0Tokens(Window):
    def __init__(self, n, k, capacity):
        super().__init__(n, max(1, k), capacity)
