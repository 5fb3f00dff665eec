"""What a token costs, against plain sums over its batches."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashref.bundle import bundle_layout
from flashref.conformance.strategies import devices, id_sets
from flashref.simulate.costs import batch_times, read_sizes
from flashref.simulate.placement import moved_by_swap
from flashref.simulate.tokens import Host, token_costs, transfer_ns
from flashref.simulate.trace import trace_of
from flashref.simulate.window import uses_of, windowed
from flashref.types import DomainError

bandwidths = st.just(0) | st.integers(10**4, 10**12)
hosts = st.builds(Host, bandwidths, bandwidths)


@st.composite
def runs(draw):
    units = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    tokens = draw(st.integers(1, 6))
    trace = trace_of([[draw(id_sets(n)) for n in units] for _ in range(tokens)], units)
    rows = [draw(st.integers(0, n)) for n in units]
    reads = windowed(uses_of(trace, tokens), draw(st.integers(1, tokens)), rows, 2, moved_by_swap)
    layouts = [bundle_layout(n, draw(st.integers(1, 9)), "F32", ("up", "down"), 16) for n in units]
    return reads, layouts, draw(st.integers(0, 10**12)), draw(hosts)


@given(runs(), devices())
def test_a_token_costs_what_its_batches_do(run, device):
    reads, layouts, resident_bytes, host = run
    sizes = read_sizes(reads, [(layout,) for layout in layouts])
    times = batch_times(device, sizes)
    unit_bytes = np.array([layout.bundle_bytes for layout in layouts])
    summed = reads.resident + 1
    costs = token_costs(reads, sizes, times, unit_bytes, summed, resident_bytes, host)

    for token in range(len(summed)):
        batches = [batch for batch in range(len(reads.token)) if reads.token[batch] == token]
        lengths = [sizes.blocks[sizes.starts[b] : sizes.starts[b + 1]] * 16 for b in batches]
        wanted = [
            int(reads.starts[b + 1] - reads.starts[b]) * layouts[reads.layer[b]].bundle_bytes for b in batches
        ]
        copied = sum(
            int(reads.loaded[token, layer] + reads.moved[token, layer]) * layout.bundle_bytes
            for layer, layout in enumerate(layouts)
        )
        weights = resident_bytes + sum(
            int(summed[token, layer]) * layout.bundle_bytes for layer, layout in enumerate(layouts)
        )
        memory = ceil(Fraction(copied * 10**9, host.copy_bandwidth)) if host.copy_bandwidth else 0
        compute = ceil(Fraction(weights * 10**9, host.compute_bandwidth)) if host.compute_bandwidth else 0
        assert [int(column[token]) for column in costs] == [
            sum(map(len, lengths)),
            sum(wanted),
            sum(int(length.sum()) for length in lengths),
            copied,
            weights,
            sum(int(times[b]) for b in batches),
            memory,
            compute,
        ]


@given(runs(), devices())
def test_perfect_overlap_saves_at_most_half(run, device):
    reads, layouts, resident_bytes, host = run
    sizes = read_sizes(reads, [(layout,) for layout in layouts])
    unit_bytes = np.array([layout.bundle_bytes for layout in layouts])
    costs = token_costs(
        reads, sizes, batch_times(device, sizes), unit_bytes, reads.resident, resident_bytes, host
    )
    assert (costs.overlapped_ns <= costs.total_ns).all()
    assert (costs.total_ns <= 2 * costs.overlapped_ns).all()
    for io, memory, compute, together in zip(
        costs.io_ns, costs.memory_ns, costs.compute_ns, costs.overlapped_ns, strict=True
    ):
        assert together == max(io, memory + compute)


def test_transfers_are_rounded_up_and_do_not_overflow():
    assert transfer_ns(np.array([0, 1, 10**13]), 3 * 10**9).tolist() == [0, 1, 3_333_333_333_334]
    assert transfer_ns(np.array([5]), 0).tolist() == [0]
    most = 2**63 // 10**9
    assert transfer_ns(np.array([most]), 1).tolist() == [most * 10**9]
    with pytest.raises(DomainError, match="292 years"):
        transfer_ns(np.array([0, most + 1]), 1)
