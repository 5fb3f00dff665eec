"""The paper's figures, derived: our values computed by hand where that is cheap."""

import re

import numpy as np
import pytest
from paper_figures import derived, value

from flashref.simulate.figures import figure_densities, paper_figure
from flashref.simulate.paper import coactivation
from flashref.simulate.paper.derivation import usual_process
from flashref.simulate.paper.figure import DEVICE, Figure, FigureRow
from flashref.simulate.paper.sections import largest_error, median_error
from flashref.simulate.statistics import Friends, coactivation_curve
from flashref.simulate.synthetic import expected_use
from flashref.simulate.trace import trace_of
from flashref.storage.device import read_time

# OPT 6.7B by hand: 32 layers, d = 4096, n = 4 d.
D, N, LAYERS = 4096, 16_384, 32
ATTENTION, FFN = LAYERS * 4 * D * D, LAYERS * 2 * D * N
EMBEDDINGS = (50_272 + 2050) * D
OTHERS = LAYERS * (4 * D + N + D + 4 * D) + 2 * D  # biases and norms
OPT_BYTES = 2 * (ATTENTION + FFN + EMBEDDINGS + OTHERS)
OPT_DENSITY = float(np.mean(figure_densities("fig9a_opt_predictor")))


def ms_at_full_queue(amount, size):
    """`amount` bytes in reads of `size` bytes, thousands at a time, on the device fitted to Fig. 2b."""
    return amount / size * read_time(DEVICE, [size] * 3200) / 3200 / 1e6


@pytest.mark.parametrize(("threads", "chunk"), [(2, 4), (8, 16), (32, 64)])
def test_a_point_of_figure_2b_is_mebibytes_over_the_time_of_many_reads(threads, chunk):
    reads = 32_000
    nanoseconds = read_time(DEVICE._replace(queue_depth=threads), [chunk * 1024] * reads)
    by_hand = reads * chunk / 1024 / (nanoseconds / 1e9)
    assert value("figure2b", f"{threads} threads", chunk).ours == pytest.approx(by_hand, rel=1e-3)


def test_the_increments_are_the_steps_of_the_curve():
    for k in (1, 5, 15, 30):
        step = value("figure4a", "s_agg(k)", k + 1).ours - value("figure4a", "s_agg(k)", k).ours
        assert value("figure4a", "s_agg(k+1) − s_agg(k)", k).ours == pytest.approx(step, rel=0.02)


def test_the_naive_row_is_the_model_s_bytes_read_front_to_back():
    row = derived("table2").rows[0]
    assert row.flash_bytes_per_token == OPT_BYTES == 13_316_947_968
    whole, rest = divmod(-(-OPT_BYTES // 4096) * 4096, 2**20)
    assert row.simulated_io_ms_per_token == read_time(DEVICE, [2**20] * whole + [rest] * (rest > 0)) / 1e6


def test_hybrid_reads_the_layers_that_half_the_model_does_not_hold():
    resident = 2 * (ATTENTION + EMBEDDINGS + LAYERS * 4 * D + 2 * D)  # biases are not counted
    kept = (OPT_BYTES // 2 - resident) // (2 * FFN // LAYERS)
    assert kept == 7
    assert derived("table2").rows[1].flash_bytes_per_token == 25 * 2 * FFN / 32


@pytest.mark.parametrize(
    ("name", "share", "size"),
    [("predictor", OPT_DENSITY, 8192), ("windowing", 0.024, 8192), ("bundling", 0.024, 16_384)],
)
def test_a_sparse_row_is_a_share_of_the_ffn_at_the_throughput_of_its_chunks(name, share, size):
    (row,) = [row for row in derived("table2").rows if row.name == name]
    assert row.flash_bytes_per_token == pytest.approx(share * 2 * FFN, rel=0.01)
    assert row.simulated_io_ms_per_token == pytest.approx(ms_at_full_queue(share * 2 * FFN, size), rel=0.03)


def test_joined_reads_take_no_longer():
    saved = {
        row.name: row.simulated_io_ms_per_token - row.joined_io_ms_per_token for row in derived("table2").rows
    }
    assert saved["naive"] == saved["hybrid"] == 0
    assert min(saved["predictor"], saved["windowing"], saved["bundling"]) > 0


def test_opt_in_float32_is_2_4_percent_in_bundles_of_32_kib():
    by_hand = ms_at_full_queue(0.024 * 4 * FFN, 32_768)
    assert value("table3", "OPT 6.7B, all, CPU").ours == pytest.approx(by_hand, rel=0.03)


def test_on_metal_opt_is_table_2_s_last_row():
    row = value("table3", "OPT 6.7B, all, Metal M1")
    assert row.ours == derived("table2").rows[4].simulated_io_ms_per_token


@pytest.mark.parametrize(
    ("name", "shares", "ffn", "room", "bundle"),
    [
        ("Persimmon 8B", "fig9b_persimmon_predictor", 36 * 2 * 4096 * 16_384, 0.0828, 32_768),
        # 28 layers: the last 4 have no predictor and are resident.
        ("Phi-2 2.7B", "fig9c_phi2_predictor", 28 * 2 * 2560 * 10_240, 0.2288, 20_480),
    ],
)
def test_where_memory_decides_the_rows_hold_less_than_a_token_and_the_rest_is_read(
    name, shares, ffn, room, bundle
):
    layers = ffn // (2 * bundle // 8 * {32_768: 16_384, 20_480: 10_240}[bundle])
    density = float(np.mean(figure_densities(shares)[:layers]))
    assert room < density
    all_read = ms_at_full_queue(density * 4 * ffn, bundle)
    never_again = ms_at_full_queue((density - room) * 4 * ffn, bundle)
    assert never_again < value("table3", f"{name}, all, CPU").ours < all_read
    assert f"{100 * room:.1f} % of the neurons" in value("appendix_c", f"{name}: room for neurons").note


def test_llama_2_s_window_of_2_fits_so_only_what_is_new_is_read():
    use = expected_use(usual_process(), [0.1], np.array([2, 3]))
    new = float(use[1] - use[0]) * 4 * 32 * 3 * 4096 * 11_008
    assert value("table3", "Llama 2 7B, all, CPU").ours == pytest.approx(
        ms_at_full_queue(new, 49_152), rel=0.05
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        # The whole checkpoints, by hand: attention, FFN, embeddings, norms.
        ("Llama 2 7B", 32 * (4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096) + 2 * 32_000 * 4096 + 4096),
        # One of the two embeddings.
        ("Persimmon 8B", 36 * (4 * 4096**2 + 2 * 4096 * 16_384) + 262_144 * 4096),
    ],
)
def test_a_naive_row_of_table_3_is_the_fp16_size_at_the_sequential_bound(name, values):
    by_hand = 2 * values / DEVICE.max_bandwidth * 1e3
    assert value("table3", f"{name}, naive, CPU").ours == pytest.approx(by_hand, rel=0.002)


def test_opt_s_memory_by_hand():
    every = OPT_BYTES / 2
    predictors = (28 * 128 + 4 * 1024) * (D + N)
    for part, amount in {
        "embeddings and attention": EMBEDDINGS + ATTENTION,
        "predictors": predictors,
        "neurons of the window": 0.24 * FFN,
    }.items():
        assert value("appendix_c", f"OPT 6.7B: {part}").ours == pytest.approx(100 * amount / every, rel=1e-3)
    assert f"{100 * predictors / every:.2f} % of the model" in derived("appendix_c").notes[0]


def test_llama_2_with_its_gates_in_memory_by_hand():
    matrix = 32 * 4096 * 11_008
    every = 32 * 4 * 4096**2 + 3 * matrix + 2 * 32_000 * 4096
    kept = every - 2 * matrix + 0.1 * 2 * matrix
    row = value("appendix_c", "Llama 2 7B: gates as predictors, k = 1")
    assert row.ours == pytest.approx(100 * kept / every, rel=1e-3)
    assert row.paper == 65


def test_a_quarter_of_persimmon_s_ffn_is_more_than_its_cap_allows():
    resident = value("appendix_c", "Persimmon 8B: always resident").ours
    ffn = 36 * 2 * 4096 * 16_384 / (36 * (4 * 4096**2 + 2 * 4096 * 16_384) + 262_144 * 4096)
    row = value("appendix_c", "Persimmon 8B: with 25 % of the FFN")
    assert row.ours == pytest.approx(resident + 25 * ffn, rel=1e-3)
    assert (row.paper, row.ours > 50) == (50, True)


def test_room_and_what_is_resident_are_the_cap():
    for name, cap in {"Persimmon 8B": 50, "Phi-2 2.7B": 65, "Llama 2 7B": 55}.items():
        resident, room = (
            value("appendix_c", f"{name}: {part}") for part in ("always resident", "room for neurons")
        )
        assert resident.ours + room.ours == pytest.approx(cap)
        assert resident.note == f"of the paper's cap of {cap} %"


def test_figure_8_begins_with_a_token_s_predicted_set_and_ends_near_what_is_new():
    first = ms_at_full_queue(OPT_DENSITY * 4 * FFN, 32_768)
    said = int(re.search(r"the first token takes (\d+)", derived("figure8").notes[1]).group(1))
    assert said == pytest.approx(first, rel=0.03)
    rest = value("figure8", "CPU, nucleus", 256).ours
    assert 0.024 / OPT_DENSITY < rest < 0.024 / OPT_DENSITY + 0.01
    (said,) = re.findall(r"tokens the mean is (\d+)", derived("figure8").notes[1])
    assert int(said) == pytest.approx(rest * first, rel=0.03)


def test_the_gpu_s_first_token_would_take_as_much_more_as_it_has_neurons():
    (said,) = re.findall(r"would take (\d+) ms", derived("figure8").notes[2])
    assert int(said) == round(30 * OPT_DENSITY / 0.024) < 442


def test_figure_7_ends_near_the_latency_of_a_read_a_layer():
    note = derived("figure7").notes[1]
    floor, ours_ms, paper, half, paper_half = re.search(
        r"latency of ([\d.]+) ms.*At 82 % ours takes ([\d.]+) ms.*machine ([\d.]+) ms; "
        r"at 50 % they take (\d+) and ([\d.]+) ms",
        note,
    ).groups()
    assert float(floor) == round(32 * DEVICE.latency_ns / 1e6, 1)
    assert (float(paper), float(paper_half)) == (5.0, 10.1)
    assert float(ours_ms) / float(half) == pytest.approx(value("figure7", "I/O time", 82).ours, rel=0.02)
    assert float(floor) < float(ours_ms) < 2 * float(floor)


def test_more_memory_than_is_resident_is_needed():
    row = value("figure7", "I/O time", 34)
    assert value("appendix_c", "OPT 6.7B: embeddings and attention").ours > 34
    assert row.ours is None and row.error is None and "resident" in row.note


def test_the_rates_behind_figure_12a_are_its_shares_and_fall():
    rates = coactivation._rates()
    shares = {rank: share / 100 for rank, share in paper_figure("fig12a")}
    assert rates[0] == pytest.approx(shares[2.0])  # rank 1 is the neuron itself
    assert rates[998] == pytest.approx(np.interp(1000, *np.array(paper_figure("fig12a")).T) / 100, rel=0.01)
    assert (np.diff(rates) <= 0).all()
    assert 1 / 60 < rates[-1] < 1 / 57  # what the comment on NEURONS says


def test_bundles_with_friends_are_counted_as_one_would_on_paper(monkeypatch):
    monkeypatch.setattr(coactivation, "WINDOW", 1)
    # Friends: 0 ↔ 1, 2 ↔ 3. Token 1 needs 0 (its friend 1 is useful), then 2 (its friend 3 is in memory).
    sets = [[np.array([3, 4])], [np.array([0, 1, 2, 3])], [np.array([0, 4])]]
    # Token 2 finds {0 … 3}: needs 4, whose friend 0 is in memory.
    rows = coactivation._bundled_with_friends(trace_of(sets, [5]), [1, 0, 3, 2, 0])
    assert [row.ours for row in rows[:2]] == [100 * 3 / 4, 200 * 3 / 4]
    alone = read_time(DEVICE, [16_384] * 3) + read_time(DEVICE, [16_384])
    pairs = read_time(DEVICE, [32_768] * 2) + read_time(DEVICE, [32_768])
    assert rows[2].ours == pytest.approx(100 * pairs / alone)
    assert [row.ours for row in rows[3:]] == pytest.approx([100 * 2 / 3, 100 * 2 / 3])


def test_a_friend_that_another_brought_is_of_no_use(monkeypatch):
    monkeypatch.setattr(coactivation, "WINDOW", 1)
    # Token 1 needs 0, 1, 2; 0 brings its friend 1, and 2 brings 1 once more.
    trace = trace_of([[np.array([3])], [np.array([0, 1, 2])]], [4])
    rows = coactivation._bundled_with_friends(trace, [1, 0, 1, 0])
    assert [row.ours for row in rows[3:]] == [0, 50]


def test_mean_shares_leave_out_what_is_never_active():
    share = np.zeros((3, 7))
    share[0], share[1] = np.linspace(0.7, 0.1, 7), np.linspace(0.5, 0.1, 7)
    ids = np.array([[1, 2, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]])
    *means, few = coactivation._mean_shares(Friends(ids, share), np.array([True, True, False]))
    assert [(row.x, row.ours) for row in (means[0], means[6])] == [
        (1, pytest.approx(60)),
        (7, pytest.approx(10)),
    ]
    assert few.ours == 50  # both have 1


def test_the_row_of_figure_12a_is_a_neuron_of_the_middle_of_the_figure():
    sets = [[np.array([0, 1])], [np.array([1, 2])], [np.array([0, 1, 2])]]
    profile = trace_of(sets, [1001])
    rows = coactivation._one_neuron(profile, 2)
    assert rows[0].ours == 100 * coactivation_curve(profile, 0, 2)[1] and rows[0].x == 2
    assert rows[0].paper == pytest.approx(94.72)
    assert not any(row.compared for row in rows)


def test_errors_are_relative_and_only_where_both_are_known_and_compared():
    rows = (
        FigureRow("a", 1.0, 11.0, 10.0),
        FigureRow("a", 2.0, 7.0, 10.0),
        FigureRow("a", 3.0, 12.0, 10.0, "an input", compared=False),
        FigureRow("a", 4.0, None, 10.0),
        FigureRow("a", 5.0, 10.0, None),
        FigureRow("a", 6.0, 10.0, 0.0),
    )
    errors = Figure("t", "x", "u", "i", rows).errors
    assert errors == pytest.approx([0.1, -0.3])
    assert median_error(errors) == pytest.approx(0.2)
    assert largest_error(errors) == pytest.approx(0.3)


def test_a_figure_without_errors_has_neither():
    assert median_error([]) is None and largest_error([]) is None
