"""The plots of `flashref simulate --plot`: what is drawn, and how it can be told apart."""

import json
from functools import partial

import pytest
from simulate_runs import outcomes_of, simulated, small_model

from flashref.simulate import plots
from flashref.simulate.policies import POLICIES

pytest.importorskip("matplotlib")

TIMES = ("I/O", "I/O + copying + compute")


@pytest.fixture
def small(capsys, tmp_path):
    """The command on the small model."""
    return partial(simulated, capsys, small_model(tmp_path))


@pytest.fixture
def drawn(monkeypatch):
    """The plots that were drawn, as matplotlib's figures."""
    figures, draw = [], plots.draw

    def keep(simulation):
        figures.append(draw(simulation))
        return figures[-1]

    monkeypatch.setattr(plots, "draw", keep)
    return figures


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_plot_is_drawn_over_memory(small, tmp_path, suffix):
    path = tmp_path / f"plot.{suffix}"
    ended = small("--policy", "naive,window", "--memory", "0.6,0.9", "--rows", "bundled", "--plot", path)
    assert ended.code == 0
    first = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(first)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.json", path.name]


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--memory", "0.6,0.9"], ["memory (share of the model's bytes)", *TIMES, "naive", "window"]),
        (["--window", "1,3"], ["window (tokens)", *TIMES, "naive", "window"]),
        ([], ["I/O", "copying", "compute", "naive", "window"]),
        (["--memory", "0.6,0.9", "--window", "1,3"], ["window, 1 token", "window, 3 tokens"]),
    ],
)
def test_axes_and_lines_of_a_plot_have_names(small, tmp_path, words, texts):
    path = tmp_path / "plot.svg"
    assert small("--policy", "naive,window", "--rows", "bundled", "--plot", path, *words).code == 0
    drawn = path.read_text()
    for text in [*texts, "milliseconds a token"]:
        assert f">{text}<" in drawn


def test_the_points_of_a_plot_are_the_outcomes(small, tmp_path, drawn):
    words = ["--policy", "hybrid,window", "--window", "3,1", "--rows", "bundled", "--json"]
    records = outcomes_of(small(*words, "--plot", tmp_path / "a.svg"))
    hybrid, later, sooner = records
    for axis, field in zip(drawn[0].axes, ("io_ms", "total_ms"), strict=True):
        level, line = axis.lines
        assert set(level.get_ydata()) == {hybrid[field]}
        assert (level.get_xdata()[0], level.get_xdata()[-1]) == (0, 1)  # in parts of the panel's width
        assert list(line.get_xdata()) == [1, 3]
        assert list(line.get_ydata()) == [sooner[field], later[field]]
    records = outcomes_of(small("--policy", "naive,lru", "--json", "--plot", tmp_path / "b.svg"))
    (axis,) = drawn[1].axes
    ends = [0.0] * len(records)
    for bars, field in zip(axis.containers, ("io_ms", "memory_ms", "compute_ms"), strict=True):
        assert [bar.get_x() for bar in bars] == ends
        ends = [end + each[field] for end, each in zip(ends, records, strict=True)]
        assert [bar.get_x() + bar.get_width() for bar in bars] == ends


def test_a_plot_has_a_look_for_each_policy_a_row_of_panels_for_each_way_and_plain_ticks(
    small, tmp_path, drawn
):
    words = ["--policy", ",".join(POLICIES), "--window", "1,2,3", "--json"]
    records = outcomes_of(small(*words, "--plot", tmp_path / "a.svg"))
    (plot,) = drawn
    assert [axis.get_title() for axis in plot.axes] == [
        f"{time}, {rows}" for rows in ("unbundled", "bundled") for time in TIMES
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


def test_level_lines_have_a_marker_each_at_a_place_of_its_own(small, tmp_path, drawn):
    words = ["--policy", ",".join(POLICIES), "--window", "1,2", "--rows", "bundled"]
    assert small(*words, "--plot", tmp_path / "a.svg").code == 0
    for axis in drawn[0].axes:
        level = [line for line in axis.lines if "window" not in line.get_label()]
        assert {tuple(line.get_markevery()) for line in level} == {(1,)}
        places = [line.get_xdata()[1] for line in level]
        assert len(set(places)) == len(POLICIES) - 1 and min(places) > 0 and max(places) < 1
        marked = [line for line in axis.lines if "belady" not in line.get_label()]
        assert len({line.get_marker() for line in marked} - {"", "None"}) == len(POLICIES) - 1


def test_ticks_are_what_was_asked_for_unless_they_would_touch(small, tmp_path, drawn):
    for memories in ("0.6,0.7,0.9", "0.6,0.601,0.9"):
        words = ["--policy", "window", "--memory", memories, "--rows", "bundled"]
        assert small(*words, "--plot", tmp_path / f"{memories}.svg").code == 0
    apart, touching = (plot.axes[0] for plot in drawn)
    assert [label.get_text() for label in apart.get_xticklabels()] == ["0.6", "0.7", "0.9"]
    assert 0.601 not in touching.get_xticks().tolist()


def test_several_windows_over_memory_are_dashed_lines_of_one_colour(small, tmp_path, drawn):
    words = ["--policy", "naive,window", "--window", "1,2,auto", "--memory", "0.6,2GB", "--rows", "bundled"]
    assert small(*words, "--plot", tmp_path / "a.svg").code == 0
    total = json.loads(small("--policy", "naive", "--json").out)["model"]["total_bytes"]
    first, _ = drawn[0].axes
    naive, *windows = first.lines
    assert [line.get_label() for line in windows] == ["window, 1 token", "window, 2 tokens", "window, auto"]
    assert len({line.get_color() for line in windows}) == 1 and naive.get_color() != windows[0].get_color()
    assert len({str(line.get_linestyle()) for line in windows}) == 3
    shares = windows[0].get_xdata().tolist()  # an amount of bytes as a share of the model's
    assert shares == [0.6, 2e9 / total]
