"""Wrong plans and reads: bytes from the wrong place, and counted wrongly."""

import numpy as np

from flashref.types import ImageError
from mutants.adapters import Engine
from mutants.registry import plant
from mutants.storage import Flash, Planner

# --- The plan


@plant("plan: gap merged off by one", "PLN-1", "GTH-3")
class JoinsBelowTheGapOnly(Planner):
    def joins(self, gap, block, max_gap):
        return gap < max_gap or gap <= 0


@plant("plan: gap merged off by one", "PLN-3", "GTH-3")
class JoinsOverABlockMoreThanTheGap(Planner):
    def joins(self, gap, block, max_gap):
        return gap <= max_gap + block


@plant("plan: touching extents not joined", "PLN-1", "GTH-3")
class LeavesTouchingReadsApart(Planner):
    def joins(self, gap, block, max_gap):
        return gap <= max_gap if gap else False


@plant("plan: a contained extent shortens the read", "PLN-2")
class ShortensAReadByAnExtentWithinIt(Planner):
    def end(self, before, after):
        return after


@plant("plan: rounded on one side", "PLN-2")
class RoundsTheLengthAndForgetsTheStart(Planner):
    def plan(self, extents, block, max_gap):
        self.check(extents, block, max_gap)
        cut = [(offset // block * block, -(-length // block) * block) for offset, length in extents]
        return super().plan(cut, block, max_gap)


@plant("plan: everything from the first byte to the last", "PLN-3", "GTH-3")
class ReadsEverythingInBetween(Planner):
    def joins(self, gap, block, max_gap):
        return True


@plant("plan: depends on the order", "PLN-4", "PLN-1")
class JoinsInTheOrderThatItIsGiven(Planner):
    def plan(self, extents, block, max_gap):
        runs = [extents[:1]]
        for extent in extents[1:]:
            runs = [*runs[:-1], [*runs[-1], extent]] if extent >= runs[-1][-1] else [*runs, [extent]]
        return sorted(read for run in runs for read in super(type(self), self).plan(run, block, max_gap))


@plant("plan: what fits is not asked", "PLN-5", "IOP-7")
class SkipsEmptyExtents(Planner):
    def check(self, extents, block, max_gap):
        super().check([extent for extent in extents if extent[1]], block, max_gap)

    def plan(self, extents, block, max_gap):
        self.check(extents, block, max_gap)
        return super().plan([extent for extent in extents if extent[1]], block, max_gap)


@plant("plan: offsets in float64", "PLN-2")
class PlansInFloat64(Planner):
    def plan(self, extents, block, max_gap):
        self.check(extents, block, max_gap)
        wide = [(int(float(offset + length)) - length, length) for offset, length in extents]
        return super().plan([(max(0, offset), length) for offset, length in wide], block, max_gap)


# --- Gathering


@plant("bytes: tail read at a wrong offset", "GTH-1", "DEC-2")
class ReadsTheLastBundleFromTheEndOfTheImage(Flash):
    def gather(self, image, ids, max_gap):
        rows, cost = super().gather(image, ids, max_gap)
        if ids and self.order.index(ids[-1]) == self.n - 1:
            rows[-1] = self.rows([image[len(image) - self.bundle_bytes :]])[0]
        return rows, cost


@plant("bytes: a short read taken for success", "GTH-1")
class ReadsAtMost4096BytesAtATime(Flash):
    def read(self, image, plan):
        return {
            offset: np.pad(image[offset : offset + min(length, 4096)], (0, max(0, length - 4096)))
            for offset, length in plan
        }


@plant("bytes: a short read taken for an error", "GTH-1")
class RefusesAReadOfMoreThan4096Bytes(Flash):
    def read(self, image, plan):
        if any(length > 4096 for _, length in plan):
            raise ImageError("short read")
        return super().read(image, plan)


@plant("bytes: rows at a wrong offset", "GTH-1")
class ForgetsWhereTheBundlesBegin(Flash):
    def offset(self, neuron):
        return super().offset(neuron) - self.start


@plant("counters: over-read not counted", "GTH-3", "DEC-7")
class CountsUsefulBytesAsRead(Flash):
    def cost(self, plan, extents):
        requests, useful, _ = super().cost(plan, extents)
        return [requests, useful, useful]


@plant("counters: useful_bytes counts padding", "GTH-3", "DEC-7")
class CountsPaddingAsUseful(Flash):
    def cost(self, plan, extents):
        requests, _, read = super().cost(plan, extents)
        return [requests, len(extents) * self.stride, read]


@plant("counters: requests counted per bundle", "GTH-3", "DEC-7")
class CountsARequestForEachBundle(Flash):
    def cost(self, plan, extents):
        return [len(extents), *super().cost(plan, extents)[1:]]


@plant("counters: of the call before", "GTH-3", "IOP-5")
class AddsUpCountersOverCalls(Engine):
    def __init__(self):
        super().__init__()
        self.counters = np.zeros(3, np.int64)

    def gather_rows(self, image, *of):
        rows, cost = super().gather_rows(image, *of)
        self.counters = self.counters + cost
        return rows, self.counters


@plant("cache: buffers reused under a view (vLLM, sglang)", "GTH-5", "IOP-4")
class GivesViewsOfItsReadBuffer(Engine):
    def __init__(self):
        super().__init__()
        self.buffer = np.zeros(2**16, np.uint8)

    def gather_rows(self, image, *of):
        rows, cost = super().gather_rows(image, *of)
        held = self.buffer[: rows.nbytes].view(rows.dtype).reshape(rows.shape)
        held[...] = rows
        return held, cost


@plant("counters: no ids", "GTH-6", "GTH-3")
class ReadsABlockForNoIds(Flash):
    def cost(self, plan, extents):
        return super().cost(plan or [(0, self.block)], extents)
