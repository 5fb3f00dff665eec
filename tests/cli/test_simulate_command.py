"""`flashref simulate` as a user meets it: tables, sentences and exact numbers."""

import csv
import io
import json
import re
from functools import partial

import pytest
from command_line import called, sentence_of
from simulate_runs import FFN_BYTES, outcomes_of, refused, simulated, small_model

from flashref.cli import tables
from flashref.cli.report import Output
from flashref.simulate.numbers import digits
from flashref.simulate.sentences import COLUMN_MEANS, POLICY_MEANS
from flashref.simulate.shapes.presets import preset_shape
from flashref.simulate.trace_file import load_description, load_trace
from flashref.storage.calibration import Calibration, Conditions, Verification, calibration_to_json
from flashref.storage.device import PRESETS, device_to_json
from flashref.storage.fit import Errors

NUMBERS = [
    "dram_bytes",
    "useful_bytes",
    "read_bytes",
    "reads",
    "copied_bytes",
    "io_ms",
    "memory_ms",
    "compute_ms",
    "total_ms",
    "overlapped_ms",
]


@pytest.fixture
def small(capsys, tmp_path):
    """The command on the small model."""
    return partial(simulated, capsys, small_model(tmp_path))


def test_the_default_rows_are_those_of_table_2_and_what_others_use(small):
    ended = small("--json")
    shown = [(each["policy"], each["rows"]) for each in outcomes_of(ended)]
    both = [("predictor", "unbundled"), ("predictor", "bundled")]
    assert shown[:4] == [("naive", None), ("hybrid", None), *both]
    assert shown[4:6] == [("window", "unbundled"), ("window", "bundled")]
    assert {policy for policy, _ in shown[6:]} == {"lru", "belady"}


def test_json_says_what_was_asked_and_how_sure_it_is(small):
    ended = small(
        "--json", "--device", "paper_m1max_fig2b,ufs40", "--policy", "naive,window", "--rows", "bundled"
    )
    found = json.loads(ended.out)
    assert found["model"]["neurons"] == 96 and found["model"]["dtype"] == "F32"
    assert found["trace"]["tokens"] == 9 and found["trace"]["first_counted"] == 3
    assert "seed 0" in found["trace"]["source"]
    assert found["devices"]["paper_m1max_fig2b"]["error"] == {"median": 0.038, "p90": 0.077, "max": 0.101}
    assert found["devices"]["ufs40"]["error"] is None
    assert found["host"] == {"copy_bandwidth": 14 * 10**9, "compute_bandwidth": 27 * 10**9}
    naive, _, window, unknown = found["outcomes"]
    assert naive["io_error_ms"] == 0.077 * naive["io_ms"]
    assert unknown["io_error_ms"] is None and unknown["device"] == "ufs40"
    assert {naive[field] for field in ("memory", "window", "order", "rows", "max_gap")} == {None}
    io, copying, compute, total = (
        round(1e6 * naive[field]) for field in ("io_ms", "memory_ms", "compute_ms", "total_ms")
    )  # whole nanoseconds, as all tokens are alike
    assert copying == 0 and total == io + compute
    assert 1 <= window["window"] <= 5 and window["memory"] == 0.8 and window["refused"] is None


def test_csv_has_a_header_and_the_same_exact_numbers(small):
    words = ["--policy", "hybrid,window", "--window", "1,3", "--memory", "0.1,0.9"]
    lines = list(csv.DictReader(io.StringIO(small("--csv", *words).out)))
    records = outcomes_of(small("--json", *words))
    assert len(lines) == len(records) == 2 + 2 * 2 * 2
    for line, record in zip(lines, records, strict=True):
        assert line == {field: "" if value is None else str(value) for field, value in record.items()}
        assert (record["refused"] is None) == (record["memory"] == 0.9)
        assert [record[field] is None for field in NUMBERS] == [record["memory"] == 0.1] * len(NUMBERS)


def test_the_table_names_what_is_the_same_everywhere_in_its_title(small):
    ended = small("--policy", "window", "--window", "2", "--rows", "bundled,unbundled")
    title, _, heading, *_ = ended.out.splitlines()
    assert ended.code == 0
    for words in (
        "a window of 2 tokens",
        "0.8 of the model in memory",
        "on paper_m1max_fig2b",
        "neurons in natural order",
    ):
        assert words in title
    assert "rows" in heading and not [word for word in ("window", "memory", "device") if word in heading]
    assert heading.split()[:2] == ["policy", "rows"]
    for name in (
        "useful",
        "read",
        "reads",
        "in DRAM",
        "copied",
        "I/O",
        "copying",
        "compute",
        "sum",
        "overlapped",
    ):
        assert name in heading
    assert "means over 6 tokens, counted after 3 warm-up tokens" in ended.out and "seed 0" in ended.out


def test_the_answer_is_the_fastest_that_can_be_built_and_its_error_bar(small):
    words = ["--policy", "naive,window,belady", "--rows", "bundled"]
    records = outcomes_of(small("--json", *words))
    fastest = min((each for each in records if each["policy"] != "belady"), key=lambda each: each["total_ms"])
    out = small(*words).out
    (line,) = [line for line in out.splitlines() if line.startswith("Fastest on")]
    memory = records[0]["memory"] or records[1]["memory"]
    start = f"Fastest on paper_m1max_fig2b with {memory:g} of the model in memory: {fastest['policy']}"
    assert line.startswith(start)
    assert "belady knows the future" in out
    assert "7.7% at the 90th percentile" in line
    (line,) = [line for line in small(*words, "--device", "ufs40").out.splitlines() if "Fastest" in line]
    assert "not measured" in line
    assert "There is no fastest policy" in small("--policy", "belady").out


def test_a_calibration_brings_its_own_error(small, tmp_path):
    conditions = Conditions("2026-01-01", "k", 0.1, "3", "e", "b", True, "f", "s", 1, 1, 0)
    device = PRESETS["nvme_gen4"]
    first = Calibration(device, Errors(0.02, 0.05, 0.1), Errors(0.01, 0.04, 0.3), conditions, (), ())
    verified = first._replace(verification=Verification(Errors(0.03, 0.07, 0.2), Errors(0.02, 0.11, 0.1), ()))
    paths = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    paths[0].write_text(calibration_to_json(first))
    paths[1].write_text(calibration_to_json(verified))  # on reads that it was not fitted to
    paths[2].write_text(device_to_json(device))
    words = ["--device", ",".join(map(str, paths)), "--policy", "naive"]
    found = json.loads(small("--json", *words).out)
    assert [found["devices"][str(path)]["error"] for path in paths[:2]] == [
        {"median": 0.02, "p90": 0.05, "max": 0.3},  # the noise, where it is larger
        {"median": 0.03, "p90": 0.11, "max": 0.2},
    ]
    assert found["devices"][str(paths[2])]["error"] is None
    io_ms = found["outcomes"][0]["io_ms"]
    assert [each["io_error_ms"] for each in found["outcomes"]] == [
        0.05 * io_ms,
        0.11 * io_ms,
        None,
    ]


def test_every_memory_gets_an_answer(small):
    words = ["--policy", "window,lru", "--memory", "0.55,0.9", "--rows", "bundled"]
    records = outcomes_of(small("--json", *words))
    lines = [line for line in small(*words).out.splitlines() if line.startswith("Fastest on")]
    for memory, line in zip((0.55, 0.9), lines, strict=True):
        best = min(each["total_ms"] for each in records if each["memory"] == memory)
        assert f"with {memory:g} of the model" in line and f"takes {digits(best)} ms a token" in line
    assert len({line.split("takes ")[1] for line in lines}) == 2


def test_a_window_that_the_rows_do_not_hold_is_said(small):
    words = ["--policy", "window", "--window", "1,4", "--rows", "bundled"]
    all_held, some = (small(*words, "--memory", memory) for memory in ("1", "0.55"))
    assert "does not fit whole" not in all_held.out
    assert "a window of 4 tokens does not fit whole for" in some.out
    assert [each["overfull"] for each in outcomes_of(small("--json", *words, "--memory", "1"))] == [0, 0]


def test_the_tiny_model_is_a_model(capsys):
    words = ["--policy", "naive", "--tokens", 5, "--warm", 0, "--json"]
    model = json.loads(called(capsys, "simulate", "--model", "tiny", *words).out)["model"]
    assert (model["layers"], model["neurons"]) == (4, 1024)


def test_a_memory_that_is_too_small_says_so_and_the_others_are_shown(small):
    ended = small("--policy", "window", "--memory", "0.05,0.9", "--rows", "bundled")
    assert ended.code == 0
    assert "Not possible: 0.05 of the model is" in ended.out
    assert any(line.split()[:2] == ["window", "auto"] and "—" in line for line in ended.out.splitlines())
    assert refused(small("--policy", "window", "--memory", "0.05"), "the smallest that works is")


def test_a_memory_may_be_an_amount_of_bytes(small):
    total = json.loads(small("--policy", "naive", "--json").out)["model"]["total_bytes"]
    words = ["--policy", "window", "--rows", "bundled", "--window", "2"]
    (share,) = outcomes_of(small(*words, "--memory", "0.8", "--json"))
    (amount,) = outcomes_of(small(*words, "--memory", f"{int(total * 0.8)}B", "--json"))
    assert amount == {**share, "memory": f"{int(total * 0.8)}B"}
    assert "Fastest on paper_m1max_fig2b with 2MB in memory: window" in small(*words, "--memory", "2MB").out
    assert "with 12345678B in memory" in small(*words, "--memory", "12345678B").out
    assert refused(small(*words, "--memory", "1kB"), "1kB is 1.00 kB, but ")


def test_where_only_naive_is_possible_it_is_not_called_the_fastest(small):
    out = small("--policy", "naive,window,lru", "--memory", "0.05,0.9", "--rows", "bundled").out
    (only,) = [line for line in out.splitlines() if line.startswith("Only naive is possible")]
    assert "on paper_m1max_fig2b with 0.05 of the model in memory. It takes " in only
    (fastest,) = [line for line in out.splitlines() if line.startswith("Fastest")]
    assert "with 0.9 of the model" in fastest
    assert "Fastest" in small("--policy", "naive").out  # nothing else was asked for


def test_where_nothing_can_be_built_the_answer_says_why(small):
    out = small("--policy", "window,lru", "--memory", "0.05,0.9", "--rows", "bundled").out
    where = "on paper_m1max_fig2b with 0.05 of the model in memory"
    assert f"None of the policies that were asked for is possible {where}." in out
    bound = small("--policy", "pinned,belady", "--warm", 0, "--tokens", 6, tokens=False).out
    assert "belady is only a bound, and cannot be built." in bound


def test_the_only_possible_policy_says_how_it_is_fastest(small):
    words = ["--policy", "window,pinned", "--warm", 0, "--tokens", 6, "--window", "1,2", "--rows", "bundled"]
    outcomes = outcomes_of(small(*words, "--json", tokens=False))
    best = min((each for each in outcomes if not each["refused"]), key=lambda each: each["total_ms"])
    (line,) = [line for line in small(*words, tokens=False).out.splitlines() if line.startswith("Only")]
    chosen = f"a window of {best['window']} token{'s' if best['window'] > 1 else ''}, bundled rows"
    assert line.startswith("Only window is possible") and f"(at its fastest with {chosen})" in line


def test_what_a_synthetic_trace_leaves_out_is_said_where_neurons_are_kept(small, tmp_path):
    told = "a token's neurons do not depend on the token before"
    assert told not in small("--policy", "naive,hybrid,predictor,belady").out
    assert told in small("--policy", "lru", "--save-trace", tmp_path / "trace").out
    assert told not in small("--policy", "lru", "--trace", tmp_path / "trace", tokens=False).out


def test_an_order_that_was_learnt_from_the_counted_tokens_says_so(small):
    told = "learnt from the counted tokens themselves, as no real system could do."
    words = ["--policy", "window", "--tokens", 6, "--order"]
    cold = small(*words, "use,natural", "--warm", 0, tokens=False).out
    assert told in cold and "Fastest on" in cold and "neurons ordered by use" in small(*words, "use").out
    assert told not in small(*words, "natural", "--warm", 0, tokens=False).out
    assert told not in small(*words, "use", "--warm", 3, tokens=False).out


def test_one_density_is_no_range(small, capsys):
    assert "(on average " in small("--policy", "naive").out
    words = ["--model", "llama-2-7b", "--policy", "naive", "--tokens", 1, "--warm", 0]
    assert "seed 0: 10.0% of a layer's neurons" in called(capsys, "simulate", *words).out


def test_a_bandwidth_without_limit_says_so(small):
    words = ["--policy", "naive", "--copy-bandwidth", "0", "--compute-bandwidth", "3.5"]
    out = small(*words).out
    assert "to move rows in it, which has no limit here." in out and "once, at 3.5 GB/s." in out


def test_a_window_that_was_chosen_says_so(small):
    out = small("--policy", "window", "--rows", "bundled", "--memory", "0.9", "--window", "1,auto").out
    rows = [line.split() for line in out.splitlines() if line.startswith(" window ")]
    assert rows[0][1] == "1" and rows[1][1:3] == ["5", "(auto)"]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_everything_fits_a_terminal_and_every_column_is_explained(small, monkeypatch, width):
    shown = Output(width=width, force_terminal=True, highlight=False, emoji=False, no_color=True)
    monkeypatch.setattr(tables, "_output", lambda: shown)
    words = ["--memory", "0.7,0.9", "--window", "1,auto", "--device", "paper_m1max_fig2b,ufs40"]
    out = re.sub(r"\x1b\[[0-9;]*m", "", small(*words).out)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    text = " ".join(out.split())
    for policy in ("naive", "hybrid", "predictor", "window", "lru", "belady"):
        assert f"{policy} {POLICY_MEANS[policy]}" in text
    (missing,) = re.findall(r"This terminal is too narrow for (.*?);", text) or [""]
    for column in COLUMN_MEANS:
        told = f"The “{column}” column " in text
        assert told != (column in ["order", "gap", *missing.split(", ")]), column


def test_a_pipe_gets_no_blanks_at_the_end_of_a_line(small):
    out = small("--memory", "0.7,0.9").out
    assert not [line for line in out.splitlines() if line != line.rstrip()]


def test_a_device_with_a_deep_queue_is_costed(small, tmp_path):
    path = tmp_path / "device.json"
    path.write_text(device_to_json(PRESETS["nvme_gen4"]._replace(queue_depth=2**53)))
    assert outcomes_of(small("--device", path, "--policy", "window", "--json"))[0]["io_ms"] > 0


def test_workers_give_the_same_outcomes(small):
    words = ["--json", "--policy", "window,lru", "--window", "1,2,3"]
    assert small(*words, "--workers", 2).out == small(*words).out


def test_a_saved_trace_gives_the_same_outcomes(small, tmp_path):
    path = tmp_path / "trace.safetensors"
    words = ["--json", "--policy", "window,belady"]
    first = small(*words, "--seed", 5, "--save-trace", path)
    assert load_trace(path).tokens == 9 and "seed 5" in load_description(path).source
    again = small(*words, "--trace", path, tokens=False)
    assert outcomes_of(again) == outcomes_of(first)
    assert str(path) in json.loads(again.out)["trace"]["source"]
    assert outcomes_of(small(*words)) != outcomes_of(first)
    assert refused(small(*words, "--save-trace", path), "exists")


def test_a_run_records_the_trace_that_it_decoded(capsys, tmp_path):
    path = tmp_path / "run.safetensors"
    prompt = "And the king"
    words = ["--prompt", prompt, "--perplexity-tokens", 0, "--no-proof"]
    assert called(capsys, "run", "--tokens", 4, *words, "--save-trace", path).code == 0
    trace = load_trace(path)
    assert trace.tokens - trace.first_counted == 4
    assert load_description(path).what == "tiny"
    assert "exists" in sentence_of("run", called(capsys, "run", "--tokens", 4, "--save-trace", path))


def test_a_folder_and_a_preset_are_models_too(small, capsys, tmp_path):
    path = small("--policy", "naive", "--json")
    folder = called(capsys, "simulate", "--model", tmp_path, "--policy", "naive", "--json", "--tokens", 6)
    assert outcomes_of(folder) == outcomes_of(path)
    words = ["simulate", "--model", "opt-125m", "--policy", "naive", "--json", "--tokens", 2]
    preset = called(capsys, *words)
    found = json.loads(preset.out)
    assert found["outcomes"][0]["useful_bytes"] == preset_shape("opt-125m").total_bytes
    wide = called(capsys, *words, "--dtype", "F32")
    assert json.loads(wide.out)["model"]["total_bytes"] == 2 * found["model"]["total_bytes"]


def test_bandwidths_and_placement_are_those_that_were_asked_for(small):
    words = ["--policy", "window", "--rows", "bundled", "--json", "--window", "2"]
    (usual,) = outcomes_of(small(*words))
    (slow,) = outcomes_of(small(*words, "--copy-bandwidth", 1, "--compute-bandwidth", 0.5))
    assert slow["memory_ms"] == usual["copied_bytes"] / 1e6  # at 1 GB/s a byte takes a nanosecond
    naive = small("--policy", "naive", "--json", "--compute-bandwidth", 0.5)
    weights = json.loads(naive.out)["model"]["resident_bytes"] + FFN_BYTES
    assert outcomes_of(naive)[0]["compute_ms"] == 2 * weights / 1e6
    (free,) = outcomes_of(small(*words, "--copy-bandwidth", 0, "--compute-bandwidth", 0))
    assert (free["memory_ms"], free["compute_ms"]) == (0, 0)
    (filled,) = outcomes_of(small(*words, "--placement", "fill_holes"))
    assert filled["copied_bytes"] < usual["copied_bytes"] and filled["io_ms"] == usual["io_ms"]
