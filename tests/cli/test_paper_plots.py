"""The plots on the page of `flashref paper --html`: ours as lines, the paper's values as markers."""

import matplotlib
import pytest
from paper_figures import NAMES, derived

from flashref.simulate.look import STYLE
from flashref.simulate.paper import plots


@pytest.fixture
def plot(monkeypatch):
    """plot(name, result): matplotlib's figure instead of its SVG."""
    kept = []
    monkeypatch.setattr(plots, "svg_text", lambda drawn, salt: kept.append(drawn))

    def draw(name, result):
        plots.plot_svg(name, result)
        return kept[-1]

    return draw


def drawn_points(lines, marked):
    """The points of lines that are drawn as markers only, or as lines."""
    return [
        [tuple(point) for point in line.get_xydata().tolist()]
        for line in lines
        if (line.get_linestyle() == "None") == marked
    ]


@pytest.mark.parametrize("name", ["figure2b", "figure4a", "figure7", "figure8", "coactivation"])
def test_a_curve_has_ours_as_lines_and_the_paper_s_as_markers(plot, name):
    (axes,) = plot(name, derived(name)).axes
    series = {}
    for row in derived(name).rows:
        if row.x is not None:
            series.setdefault(row.series, []).append(row)
    ours = [[(row.x, row.ours) for row in rows if row.ours is not None] for rows in series.values()]
    paper_s = [[(row.x, row.paper) for row in rows if row.paper is not None] for rows in series.values()]
    assert drawn_points(axes.lines, marked=False) == [points for points in ours if points]
    assert drawn_points(axes.lines, marked=True) == paper_s
    assert (axes.get_xlabel(), axes.get_ylabel()) == (derived(name).axis, derived(name).unit)
    markers = [line.get_marker() for line in axes.lines if line.get_linestyle() == "None"]
    assert len(set(markers)) == len(markers)  # told apart without colour


def test_scales_fit_what_they_show(plot):
    (axes,) = plot("figure2b", derived("figure2b")).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xticks().tolist() == [4, 8, 16, 32, 64]
    (axes,) = plot("figure7", derived("figure7")).axes
    assert axes.get_ylim()[0] == 0  # or a fall would look deeper than it is


@pytest.mark.parametrize("name", ["table3", "appendix_c"])
def test_a_table_is_plotted_row_by_row(plot, name):
    (axes,) = plot(name, derived(name)).axes
    rows = derived(name).rows
    bars, rings = (line.get_xydata().tolist() for line in axes.lines)
    assert bars == [[row.ours, at] for at, row in enumerate(rows) if row.ours is not None]
    assert rings == [[row.paper, at] for at, row in enumerate(rows) if row.paper is not None]
    labels = [" ".join(label.get_text().split()) for label in axes.get_yticklabels()]
    assert labels == [row.series for row in rows]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top
    assert axes.get_xlabel() == derived(name).unit


def test_table_2_is_plotted_in_bytes_and_in_time(plot):
    above, below = plot("table2", derived("table2")).axes
    rows = derived("table2").rows
    values = [[line.get_xdata().tolist() for line in axes.lines] for axes in (above, below)]
    assert values[0] == [
        [row.flash_bytes_per_token / 1e9 for row in rows],
        [row.paper_flash_bytes / 1e9 for row in rows],
    ]
    assert values[1] == [[row.simulated_io_ms_per_token for row in rows], [row.paper_io_ms for row in rows]]
    assert (above.get_xlabel(), below.get_xlabel()) == ("GB a token", "ms of I/O a token")


@pytest.mark.parametrize("name", NAMES)
def test_a_legend_lies_beside_the_data(plot, name):
    drawn = plot(name, derived(name))
    with matplotlib.rc_context(STYLE):
        drawn.draw_without_rendering()
    (legend,) = drawn.legends
    for axes in drawn.axes:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    series = {row.series for row in derived(name).rows if getattr(row, "x", None) is not None}
    words = {text.get_text() for text in legend.get_texts()}
    assert words == {"line: ours", "marker: paper"} | (series if len(series) > 1 else set())
