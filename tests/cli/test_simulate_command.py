"""`flashref simulate` as a user meets it: tables, exact numbers, figures, and one sentence for a mistake."""

import csv
import errno
import io
import json
import re
import sys
from collections import namedtuple
from concurrent.futures.process import BrokenProcessPool

import pytest

from flashref.cli import main, tables
from flashref.cli.report import Output
from flashref.simulate import plots, simulation
from flashref.simulate.numbers import digits
from flashref.simulate.policies import POLICIES
from flashref.simulate.sentences import COLUMN_MEANS, POLICY_MEANS
from flashref.simulate.shapes.presets import preset_shape
from flashref.simulate.trace_file import load_description, load_trace
from flashref.storage.calibration import Calibration, Conditions, Verification, calibration_to_json
from flashref.storage.device import PRESETS, device_to_json
from flashref.storage.fit import Errors

Ended = namedtuple("Ended", "code out err")
CONFIG = {
    "model_type": "opt",
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "ffn_dim": 96,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "word_embed_proj_dim": 32,
    "torch_dtype": "float32",
}
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
def flashref(capsys):
    """flashref(words …): the exit code, and what came out; an error's traceback never."""

    def run(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ended(code, out, err)

    return run


@pytest.fixture
def small(flashref, tmp_path):
    """The command on a model of three layers and a few tokens."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))

    def run(*words, tokens=True):
        short = ["--tokens", 6, "--warm", 3] if tokens else []
        return flashref("simulate", "--model", path, "--memory", 0.8, *short, *words)

    return run


def refused(ended, *parts):
    """One sentence on stderr, nothing on stdout, exit code 2."""
    assert ended.code == 2 and not ended.out
    assert len(ended.err.strip().splitlines()) == 1
    for part in parts:
        assert str(part) in ended.err
    return True


def total_bytes(small):
    return json.loads(small("--policy", "naive", "--json").out)["model"]["total_bytes"]


def outcomes_of(ended):
    assert ended.code == 0, ended.err
    return json.loads(ended.out)["outcomes"]


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
    assert naive["io_error_ms"] == pytest.approx(0.077 * naive["io_ms"])
    assert unknown["io_error_ms"] is None and unknown["device"] == "ufs40"
    assert {naive[field] for field in ("memory", "window", "order", "rows", "max_gap")} == {None}
    assert naive["total_ms"] == pytest.approx(naive["io_ms"] + naive["compute_ms"])
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
    for words in ("window 2", "0.8 of the model in memory", "on paper_m1max_fig2b", "natural order"):
        assert words in title
    assert "rows" in heading and "window" not in heading and "device" not in heading
    assert heading.split()[:2] == ["policy", "rows"]
    for name in (
        "useful",
        "read",
        "reads",
        "in DRAM",
        "copied",
        "I/O",
        "memory",
        "compute",
        "sum",
        "overlapped",
    ):
        assert name in heading
    assert "6 tokens counted, after 3 that are not" in ended.out and "seed 0" in ended.out


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
    assert "90th percentile 7.7%" in line
    (line,) = [line for line in small(*words, "--device", "ufs40").out.splitlines() if "Fastest" in line]
    assert "not measured" in line
    assert "nothing but a bound" in small("--policy", "belady").out


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
        pytest.approx(0.05 * io_ms),
        pytest.approx(0.11 * io_ms),
        None,
    ]


def test_every_memory_gets_an_answer(small):
    words = ["--policy", "window,lru", "--memory", "0.55,0.9", "--rows", "bundled"]
    records = outcomes_of(small("--json", *words))
    lines = [line for line in small(*words).out.splitlines() if line.startswith("Fastest on")]
    for memory, line in zip((0.55, 0.9), lines, strict=True):
        best = min(each["total_ms"] for each in records if each["memory"] == memory)
        assert f"with {memory:g} of the model" in line and f"rows: {digits(best)} ms a token" in line
    assert len({line.split("rows: ")[1] for line in lines}) == 2


def test_a_window_that_the_rows_do_not_hold_is_said(small):
    words = ["--policy", "window", "--window", "1,4", "--rows", "bundled"]
    all_held, some = (small(*words, "--memory", memory) for memory in ("1", "0.55"))
    assert "does not fit whole" not in all_held.out
    assert "a window of 4 does not fit whole for" in some.out
    assert [each["overfull"] for each in outcomes_of(small("--json", *words, "--memory", "1"))] == [0, 0]


def test_the_tiny_model_is_a_model(flashref):
    words = ["--policy", "naive", "--tokens", 5, "--warm", 0, "--json"]
    model = json.loads(flashref("simulate", "--model", "tiny", *words).out)["model"]
    assert (model["layers"], model["neurons"]) == (4, 1024)


def test_a_memory_that_is_too_small_says_so_and_the_others_are_shown(small):
    ended = small("--policy", "window", "--memory", "0.05,0.9", "--rows", "bundled")
    assert ended.code == 0
    assert "not possible: 0.05 of the model is " in ended.out
    assert any(line.split()[:2] == ["window", "auto"] and "—" in line for line in ended.out.splitlines())
    assert refused(small("--policy", "window", "--memory", "0.05"), "the smallest that works is")


def test_a_memory_may_be_an_amount_of_bytes(small):
    total = total_bytes(small)
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
    assert "on paper_m1max_fig2b with 0.05 of the model in memory: " in only
    (fastest,) = [line for line in out.splitlines() if line.startswith("Fastest")]
    assert "with 0.9 of the model" in fastest
    assert "Fastest" in small("--policy", "naive").out  # nothing else was asked for


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
    (missing,) = re.findall(r"No room here for (.*?):", text) or [""]
    for column in COLUMN_MEANS:
        told = f"The column {column} " in text
        assert told != (column in ["order", "gap", *missing.split(", ")]), column


def test_a_pipe_gets_no_blanks_at_the_end_of_a_line(small):
    out = small("--memory", "0.7,0.9").out
    assert not [line for line in out.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("latency_ns", 10**30, "latency_ns must be at most 2^53"),
        ("queue_depth", 10**25, "queue_depth must be at most 2^53"),
        ("dispatch_ns", 10**25, "dispatch_ns must be at most 2^53"),
        ("latency_ns", 10**17, "latency_ns must be at most 2^53"),
        ("latency_ns", 2**53, "longer than 292 years"),
    ],
)
def test_a_device_with_impossible_numbers_is_refused(small, tmp_path, field, value, said):
    path = tmp_path / "device.json"
    fields = json.loads(device_to_json(PRESETS["nvme_gen4"]))
    path.write_text(json.dumps({**fields, field: value}))
    assert refused(small("--device", path, "--tokens", 200, "--warm", 0, tokens=False), said)


def test_a_device_with_a_deep_queue_is_costed(small, tmp_path):
    path = tmp_path / "device.json"
    path.write_text(device_to_json(PRESETS["nvme_gen4"]._replace(queue_depth=2**53)))
    assert outcomes_of(small("--device", path, "--policy", "window", "--json"))[0]["io_ms"] > 0


def test_workers_give_the_same_outcomes(small):
    words = ["--json", "--policy", "window,lru", "--window", "1,2,3"]
    assert small(*words, "--workers", 2).out == small(*words).out


def test_a_worker_that_dies_is_told_in_one_sentence(small, monkeypatch):
    def die(*_):
        raise BrokenProcessPool("a process was killed")

    monkeypatch.setattr(simulation, "sweep", die)
    assert refused(small("--workers", 2), "a worker ended", "--workers")


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


def test_a_trace_of_another_model_is_refused(small, flashref, tmp_path):
    path = tmp_path / "trace.safetensors"
    small("--save-trace", path, "--policy", "naive")
    ended = flashref("simulate", "--trace", path)
    assert refused(ended, "3 layers of 96 neurons", "32 layers of 16384 neurons", "--model")
    assert refused(small("--trace", path), "leave them out with --trace")


def test_a_run_records_the_trace_that_it_decoded(flashref, tmp_path):
    path = tmp_path / "run.safetensors"
    prompt = "And the king"
    ended = flashref("run", "--tokens", 4, "--prompt", prompt, "--perplexity-tokens", 0, "--save-trace", path)
    assert ended.code == 0
    trace = load_trace(path)
    assert trace.tokens - trace.first_counted == 4
    assert load_description(path).what == "tiny"
    again = flashref("run", "--tokens", 4, "--save-trace", path)
    assert refused(again, "--save-trace", "exists")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure_is_drawn_over_memory(small, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"figure.{suffix}"
    ended = small("--policy", "naive,window", "--memory", "0.6,0.9", "--rows", "bundled", "--plot", path)
    assert ended.code == 0
    first = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(first)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.json", path.name]


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--memory", "0.6,0.9"], ["memory (share of the model's bytes)", "I/O", "sum", "naive", "window"]),
        (["--window", "1,3"], ["window (tokens)", "I/O", "sum", "naive", "window"]),
        ([], ["I/O", "memory management", "compute", "naive", "window"]),
        (["--memory", "0.6,0.9", "--window", "1,3"], ["window, 1 token", "window, 3 tokens"]),
    ],
)
def test_axes_and_lines_of_a_figure_have_names(small, tmp_path, words, texts):
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.svg"
    assert small("--policy", "naive,window", "--rows", "bundled", "--plot", path, *words).code == 0
    drawn = path.read_text()
    for text in [*texts, "milliseconds a token"]:
        assert f">{text}<" in drawn


def test_the_points_of_a_figure_are_the_outcomes(small, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    new_plot = plots.new_plot

    def keep(*size):
        figures.append(new_plot(*size))
        return figures[-1]

    monkeypatch.setattr(plots, "new_plot", keep)
    words = ["--policy", "hybrid,window", "--window", "3,1", "--rows", "bundled", "--json"]
    records = outcomes_of(small(*words, "--plot", tmp_path / "a.svg"))
    hybrid, later, sooner = records
    for axis, field in zip(figures[0].axes, ("io_ms", "total_ms"), strict=True):
        level, line = axis.lines
        assert list(level.get_ydata()) == [hybrid[field]] * 2
        assert list(line.get_xdata()) == [1, 3]
        assert list(line.get_ydata()) == [sooner[field], later[field]]
    records = outcomes_of(small("--policy", "naive,lru", "--json", "--plot", tmp_path / "b.svg"))
    (axis,) = figures[1].axes
    for bars, field in zip(axis.containers, ("io_ms", "memory_ms", "compute_ms"), strict=True):
        assert [bar.get_width() for bar in bars] == pytest.approx([each[field] for each in records])


def test_a_plot_has_a_look_for_each_policy_a_row_of_panels_for_each_way_and_plain_ticks(
    small, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    drawn = []
    draw = plots.draw
    monkeypatch.setattr(plots, "draw", lambda each: drawn.append(draw(each)) or drawn[-1])
    words = ["--policy", ",".join(POLICIES), "--window", "1,2,3", "--json"]
    records = outcomes_of(small(*words, "--plot", tmp_path / "a.svg"))
    (plot,) = drawn
    assert [axis.get_title() for axis in plot.axes] == [
        f"{time}, {rows}" for rows in ("unbundled", "bundled") for time in ("I/O", "sum")
    ]
    for axis, (rows, field) in zip(
        plot.axes, [(r, f) for r in ("unbundled", "bundled") for f in ("io_ms", "total_ms")], strict=True
    ):
        assert len(axis.lines) == len(POLICIES)  # the window's three points are one line
        looks = {(line.get_color(), line.get_linestyle()) for line in axis.lines}
        assert len(looks) == len(POLICIES)
        (bound,) = [line for line in axis.lines if "belady" in line.get_label()]
        assert bound.get_label() == "belady (a bound)" and bound.get_linestyle() == ":"
        assert axis.get_xticks().tolist() == [1, 2, 3]  # whole tokens
        shown = {line.get_label(): line.get_ydata()[-1] for line in axis.lines}
        for record in records:
            if record["rows"] in (None, rows) and record["policy"] not in ("window", "belady"):
                assert shown[record["policy"]] == record[field]
        ticks = [axis.yaxis.get_major_formatter()(place, 0) for place in axis.get_yticks()]
        assert not [tick for tick in ticks if "^" in tick or "×" in tick]


def test_several_windows_over_memory_are_dashed_lines_of_one_colour(small, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    draw = plots.draw
    monkeypatch.setattr(plots, "draw", lambda each: drawn.append(draw(each)) or drawn[-1])
    words = ["--policy", "naive,window", "--window", "1,2,auto", "--memory", "0.6,2GB", "--rows", "bundled"]
    assert small(*words, "--plot", tmp_path / "a.svg").code == 0
    first, _ = drawn[0].axes
    naive, *windows = first.lines
    assert [line.get_label() for line in windows] == ["window, 1 token", "window, 2 tokens", "window, auto"]
    assert len({line.get_color() for line in windows}) == 1 and naive.get_color() != windows[0].get_color()
    assert len({str(line.get_linestyle()) for line in windows}) == 3
    shares = windows[0].get_xdata().tolist()  # an amount of bytes as a share of the model's
    assert shares[0] == 0.6 and shares[1] == pytest.approx(2e9 / total_bytes(small))


def test_a_file_that_cannot_be_written_does_not_take_the_result_away(small, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    words = ["--policy", "naive", "--json"]
    expected = small(*words).out

    def full(path, size):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("flashref.cli.plots.create_file", full)
    monkeypatch.setattr("flashref.simulate.trace_file.create_file", full)
    for option, path in (("--plot", tmp_path / "a.svg"), ("--save-trace", tmp_path / "a")):
        ended = small(*words, option, path)
        assert (ended.code, ended.out) == (2, expected)
        assert f"{path}: No space left on device" in ended.err and ended.err.count("\n") == 1
        assert not path.exists()


def test_two_files_of_one_name_are_refused_before_the_work(small, tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "sweep", lambda *_: pytest.fail("simulated before it was refused"))
    path = tmp_path / "a.svg"
    assert refused(small("--plot", path, "--save-trace", path), "--plot and --save-trace name one file")


def test_what_would_keep_a_figure_from_being_written_is_said_before_the_work(small, tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "sweep", lambda *_: pytest.fail("simulated before it was refused"))
    (tmp_path / "here.png").touch()
    assert refused(small("--plot", tmp_path / "a.jpg"), ".png, .svg, .pdf")
    assert refused(small("--plot", tmp_path / "here.png"), "exists")
    assert refused(small("--plot", tmp_path / "no" / "a.png"), "no folder")
    assert refused(small("--save-trace", tmp_path / "no" / "a"), "--save-trace", "no folder")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refused(small("--plot", tmp_path / "a.png"), "install flashref with its `plot` extra")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model", "opt-7b"], ["--model opt-7b", "opt-6.7b"]),
        (["--device", "floppy"], ["--device floppy", "ufs40"]),
        (["--policy", "naive,random"], ["'random' is unknown", "belady"]),
        (["--order", "alphabetic"], ["'alphabetic' is unknown", "co-activation"]),
        (["--rows", "loose"], ["'loose' is unknown", "bundled"]),
        (["--memory", "0.5,1.5"], ["at most 1, not 1.5"]),
        (["--memory", "0.5,"], ["'' is not a share such as 0.5, nor bytes"]),
        (["--window", "0"], ["at least 1"]),
        (["--window", "10"], ["longer than the trace of 9 tokens"]),
        (["--window", "4", "--tokens", "2", "--warm", "1"], ["longer than the trace of 3 tokens"]),
        (["--window", "some"], ["'some' is not a whole number"]),
        (["--max-gap", "-1"], ["at least 0"]),
        (["--tokens", "0"], ["at least 1"]),
        (["--workers", "0"], ["at least 1"]),
        (["--copy-bandwidth", "-3"], ["at least 0"]),
        (["--copy-bandwidth", "1e-300"], ["less than a byte a second; 0 means no limit"]),
        (["--compute-bandwidth", "fast"], ["'fast' is not a number of GB/s"]),
        (["--compute-bandwidth", "nan"], ["'nan' is not a number of GB/s"]),
        (["--json", "--csv"], ["not allowed with"]),
        (["--policy", "pinned", "--warm", "0"], ["warm it first"]),
    ],
)
def test_a_mistake_gets_one_sentence(small, words, parts):
    assert refused(small(*words), *parts)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "bert"}', '{"model_type": "opt"}'])
def test_a_config_that_is_none_is_refused(flashref, tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert refused(flashref("simulate", "--model", path), path)


def test_a_folder_and_a_preset_are_models_too(small, flashref, tmp_path):
    path = small("--policy", "naive", "--json")
    folder = flashref("simulate", "--model", tmp_path, "--policy", "naive", "--json", "--tokens", 6)
    assert outcomes_of(folder) == outcomes_of(path)
    preset = flashref("simulate", "--model", "opt-125m", "--policy", "naive", "--json", "--tokens", 2)
    found = json.loads(preset.out)
    assert found["outcomes"][0]["useful_bytes"] == preset_shape("opt-125m").total_bytes
    wide = flashref(
        "simulate", "--model", "opt-125m", "--dtype", "F32", "--policy", "naive", "--json", "--tokens", 2
    )
    assert json.loads(wide.out)["model"]["total_bytes"] == 2 * found["model"]["total_bytes"]


def test_bandwidths_and_placement_are_those_that_were_asked_for(small):
    words = ["--policy", "window", "--rows", "bundled", "--json", "--window", "2"]
    (usual,) = outcomes_of(small(*words))
    (slow,) = outcomes_of(small(*words, "--copy-bandwidth", 1.4, "--compute-bandwidth", 2.7))
    assert slow["memory_ms"] == pytest.approx(10 * usual["memory_ms"], abs=1e-5)  # 10 ns
    assert slow["compute_ms"] == pytest.approx(10 * usual["compute_ms"], abs=1e-5)
    (free,) = outcomes_of(small(*words, "--copy-bandwidth", 0, "--compute-bandwidth", 0))
    assert (free["memory_ms"], free["compute_ms"]) == (0, 0)
    (filled,) = outcomes_of(small(*words, "--placement", "fill_holes"))
    assert filled["copied_bytes"] < usual["copied_bytes"] and filled["io_ms"] == usual["io_ms"]


def test_an_interrupt_leaves_nothing(small, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "sweep", interrupted)
    ended = small("--plot", tmp_path / "a.svg", "--workers", 2)
    assert ended.code == 130 and not ended.out
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]
