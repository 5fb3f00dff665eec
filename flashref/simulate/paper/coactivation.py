"""Fig. 12 and appendix D: why it fails to bundle a neuron with its closest friend."""

import numpy as np
import numpy.typing as npt

from flashref.simulate.costs import Sizes, batch_times
from flashref.simulate.figures import paper_figure
from flashref.simulate.paper.figure import DEVICE, DEVICE_NAME, Figure, FigureRow
from flashref.simulate.statistics import Friends, closest_friends, coactivation_curve
from flashref.simulate.trace import ActivationTrace, trace_of

NEURONS = 4096  # the most active quarter of a layer; each other neuron is active in 1 token of 58 or fewer
BUNDLE = 16_384  # bytes of a bundle of OPT 6.7B in fp16
PROFILED, COUNTED, WINDOW = 1024, 64, 5
SEED = 12
RANKS = (2, 3, 5, 10, 20, 50, 100, 200, 500, 999)
TYPICAL_RATE = 0.18  # the rate of a neuron in the middle ranks of the figure
# The mean shares of Fig. 12b–d in %, by the friend's rank; nothing here is computed from them.
PAPER = {1: 100.0, 3: 83.0, 7: 64.2}
FRIENDS_NOTES = {
    1: "Fig. 12b; the text says at least 95 %",
    3: "Fig. 12c, by its caption; its title says 4th",
    7: "Fig. 12d, by its caption; its title says 8th",
}


def coactivation() -> Figure:
    """Derive Fig. 12 from its own first panel, and what bundles of two friends would cost."""
    rates = _rates()
    rng = np.random.default_rng(SEED)
    active = [[np.flatnonzero(rng.random(NEURONS) < rates)] for _ in range(PROFILED + COUNTED)]
    profile = trace_of(active[:PROFILED], [NEURONS])
    friends = closest_friends(profile, 0, max(PAPER))
    rows = _one_neuron(profile, int(np.searchsorted(-rates, -TYPICAL_RATE)))
    rows += _mean_shares(friends, np.bincount(profile.ids, minlength=NEURONS) > 0)
    rows += _bundled_with_friends(trace_of(active[PROFILED:], [NEURONS]), friends.ids[:, 0].tolist())
    return Figure(
        "Fig. 12, appendix D: bundling by co-activation",
        "rank",
        "%",
        (
            "independent neurons with the rates of Fig. 12a, so that 12a itself is only repeated, a window "
            f"of {WINDOW}, and the device {DEVICE_NAME}"
        ),
        tuple(rows),
        (
            (
                "Independent neurons are enough for the figure: a very active neuron is the closest friend "
                "of almost every other, not because they belong together, but because it is always there."
            ),
            (
                "So a bundle of two friends has twice the bytes, and mostly brings a neuron that is in "
                "memory already. That is why the paper gave it up."
            ),
            (
                f"Of the layer's 16,384 neurons the {NEURONS:,} most active are used, with {PROFILED:,} "
                f"tokens to find the friends and {COUNTED} other tokens to read for."
            ),
        ),
    )


def _rates() -> npt.NDArray[np.float64]:
    """The rate of each neuron: the shares of Fig. 12a from rank 2 on, for rank 1 is the neuron itself."""
    ranks, shares = np.array(paper_figure("fig12a")).T
    log_ranks, log_rates = np.log(ranks[1:] - 1), np.log(shares[1:] / 100)
    every, end = np.log(np.arange(1, NEURONS + 1)), log_ranks[-1]
    # Beyond the figure's last rank the rates fall as steeply as from rank 100 to there.
    slope = (log_rates[-1] - np.interp(np.log(99), log_ranks, log_rates)) / (end - np.log(99))
    beyond = log_rates[-1] + slope * (every - end)
    rates: npt.NDArray[np.float64] = np.exp(
        np.where(every <= end, np.interp(every, log_ranks, log_rates), beyond)
    )
    return rates


def _one_neuron(profile: ActivationTrace, neuron: int) -> list[FigureRow]:
    """Fig. 12a, from which the rates come."""
    curve = coactivation_curve(profile, 0, neuron)
    paper = np.interp(RANKS, *np.array(paper_figure("fig12a")).T).tolist()
    name = "active together with one neuron (12a)"
    return [
        FigureRow(name, rank, 100 * float(curve[rank - 1]), share, "repeats an input", compared=False)
        for rank, share in zip(RANKS, paper, strict=True)
    ]


def _mean_shares(friends: Friends, used: npt.NDArray[np.bool_]) -> list[FigureRow]:
    """Fig. 12b–d, and what share of the neurons is the closest friend of any other."""
    name = "with the n-th closest friend, mean (12b–d)"
    means = 100 * friends.share[used].mean(axis=0)
    rows = [
        FigureRow(name, rank, float(mean), PAPER.get(rank), FRIENDS_NOTES.get(rank, ""))
        for rank, mean in enumerate(means, start=1)
    ]
    few = len(np.unique(friends.ids[used, 0])) / int(used.sum())
    return [*rows, FigureRow("neurons that are a closest friend", None, 100 * few, None)]


def _bundled_with_friends(trace: ActivationTrace, friend: list[int]) -> list[FigureRow]:
    """Reads, bytes and time with bundles of a neuron and its friend, in % of those with neurons alone."""
    alone, pairs, in_memory, useless = [], [], 0, 0
    for token in range(WINDOW, trace.tokens):
        kept = {neuron for back in range(1, WINDOW + 1) for neuron in trace.active(token - back, 0).tolist()}
        needed = [neuron for neuron in trace.active(token, 0).tolist() if neuron not in kept]
        brought: set[int] = set()
        read = 0
        for neuron in needed:
            if neuron in brought:
                continue
            read += 1
            in_memory += friend[neuron] in kept
            useless += friend[neuron] not in needed or friend[neuron] in brought
            brought |= {neuron, friend[neuron]}
        alone.append(len(needed))
        pairs.append(read)
    blocks = BUNDLE // DEVICE.block
    times = [
        int(batch_times(DEVICE, sizes).sum()) for sizes in (_reads(alone, blocks), _reads(pairs, 2 * blocks))
    ]
    more, of_friends = "with friends, in % of those without", "friends brought"
    return [
        FigureRow(f"reads {more}", None, 100 * sum(pairs) / sum(alone), None),
        FigureRow(f"bytes {more}", None, 200 * sum(pairs) / sum(alone), None),
        FigureRow(f"I/O time {more}", None, 100 * times[1] / times[0], None),
        FigureRow(f"{of_friends} that were in memory already", None, 100 * in_memory / sum(pairs), None),
        FigureRow(f"{of_friends} that were of no use", None, 100 * useless / sum(pairs), None),
    ]


def _reads(counts: list[int], blocks: int) -> Sizes:
    """Batches with these numbers of reads, each of `blocks` blocks."""
    return Sizes(np.full(sum(counts), blocks), np.concatenate([[0], np.cumsum(counts)]), DEVICE.block)
