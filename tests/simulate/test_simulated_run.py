"""A real run and a simulated run of its trace: equal in bytes, requests, moves and resident sets."""

import numpy as np
import pytest
from proven_runs import decode
from random_models import LAYERS, NEURONS, open_packed, random_weights, write_model

from flashref.simulate.costs import batch_times, read_sizes
from flashref.simulate.placement import moved_by_fill, moved_by_swap
from flashref.simulate.trace import trace_of
from flashref.simulate.window import uses_of, windowed
from flashref.slots import fill_holes, swap_with_last
from flashref.storage.device import PRESETS
from flashref.storage.readers import DirectReader

DEVICE = PRESETS["paper_m1max_fig2b"]
MOVES = {swap_with_last: moved_by_swap, fill_holes: moved_by_fill}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), random_weights(rank=6))


def simulated(decoded, opened):
    """Reads of the trace under the same window and rows, and the changes that its placement was told."""
    trace = trace_of(decoded.record.predicted, (NEURONS,) * LAYERS)
    told = []
    budget = opened.budget
    reads = windowed(
        uses_of(trace, budget.window),
        budget.window,
        budget.capacities,
        opened.demand.bypass_rows,
        lambda changes: told.append(changes) or MOVES[opened.decoder.place](changes),
    )
    return trace, reads, told[0]


def check(opened, decoded, proof, times):
    trace, reads, changes = simulated(decoded, opened)
    sizes = read_sizes(reads, [(layout,) for layout in opened.layouts])
    nanoseconds = batch_times(DEVICE, sizes)
    steps = [step for layers in proof.passes for _, step in layers]
    assert len(steps) == trace.tokens * LAYERS
    resident = [set() for _ in range(LAYERS)]
    batch = 0
    for at, step in enumerate(steps):
        token, layer = divmod(at, LAYERS)
        mine = []
        while batch < len(reads.token) and (reads.token[batch], reads.layer[batch]) == (token, layer):
            mine.append(batch)
            batch += 1
        lengths = [sizes.blocks[sizes.starts[b] : sizes.starts[b + 1]] * sizes.block for b in mine]
        assert step.io.requests == sum(map(len, lengths))
        assert step.io.read_bytes == sum(int(length.sum()) for length in lengths)
        assert step.io.useful_bytes == opened.layouts[layer].bundle_bytes * sum(
            int(reads.starts[b + 1] - reads.starts[b]) for b in mine
        )
        assert reads.moved[token, layer] == len(step.moves.source)
        loaded = changes.load_ids[changes.load_starts[at] : changes.load_starts[at + 1]].tolist()
        evicted = changes.evict_ids[changes.evict_starts[at] : changes.evict_starts[at + 1]].tolist()
        assert loaded == step.load.tolist() and sorted(evicted) == step.evict.tolist()
        resident[layer] = (resident[layer] - set(evicted)) | set(loaded)
        assert resident[layer] == set(step.resident.tolist())
        assert reads.resident[token, layer] == len(step.resident)
        if times:
            assert list(step.times) == [int(nanoseconds[b]) for b in mine if len(lengths[mine.index(b)])]
    assert batch == len(reads.token)


@pytest.mark.parametrize("place", MOVES)
@pytest.mark.parametrize("capacities", [(NEURONS, NEURONS), (12, 8), (3, 0)])
def test_a_simulated_run_is_the_real_one_in_all_but_the_clock(folder, capacities, place):
    opened = open_packed(folder, capacities)
    opened = opened._replace(decoder=opened.decoder._replace(place=place))
    decoded, proof = decode(opened)
    check(opened, decoded, proof, times=True)


def test_so_it_is_where_a_disk_is_really_read(folder):
    opened = open_packed(folder, (12, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *a, **k: None)  # file systems without O_DIRECT
        reader = DirectReader(opened.image.container.path, 4)
    with reader:
        decoded, proof = decode(opened, opened.decoder._replace(read=reader.read))
    check(opened, decoded, proof, times=False)
    assert np.all([min(step.times, default=1) > 0 for layers in proof.passes for _, step in layers])
