"""`flashref paper`: its JSON, its tables and its page, from figures that are computed once."""

import errno
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import pytest
from paper_figures import derived

from flashref.cli import main, paper
from flashref.cli import tables as command_tables
from flashref.cli.report import Output
from flashref.simulate.look import COLOURS, GRID, INK, STYLE
from flashref.simulate.numbers import digits
from flashref.simulate.paper import plots, tables
from flashref.simulate.paper.figure import Figure, FigureRow
from flashref.simulate.paper.page import FOLDED, inline_svg, page

NAMES = ["figure2b", "figure4a", "table2", "table3", "appendix_c", "figure7", "figure8", "coactivation"]
VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = "<script>alert(\"a & 'b'\")</script>"


@pytest.fixture(autouse=True)
def computed_once(monkeypatch):
    monkeypatch.setattr(tables, "FIGURES", {name: lambda name=name: derived(name) for name in NAMES})


@pytest.fixture
def nothing_computed(monkeypatch):
    def compute():
        raise AssertionError("computed before the mistake was found")

    monkeypatch.setattr(tables, "FIGURES", dict.fromkeys(NAMES, compute))


def run(capsys, *words):
    """Exit code, stdout and stderr of `flashref paper`."""
    try:
        code = main(["paper", *words])
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def read_json(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


class Page(HTMLParser):
    """A page taken apart; an end that nothing began is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.text[tag] = self.text.get(tag, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def whole():
    return page({name: derived(name) for name in NAMES})


# --- JSON -------------------------------------------------------------------------------------------


def test_json_has_the_figures_and_no_other_key(capsys):
    code, out, err = run(capsys, "--json")
    assert (code, err) == (0, "")
    assert list(read_json(out)) == NAMES


def test_json_of_table_2_is_a_list_of_rows(capsys):
    rows = read_json(run(capsys, "--json", "--only", "table2")[1])["table2"]
    assert [row["name"] for row in rows] == ["naive", "hybrid", "predictor", "windowing", "bundling"]
    for row, ours in zip(rows, derived("table2").rows, strict=True):
        assert set(row) == {
            "name",
            "flash_bytes_per_token",
            "simulated_io_ms_per_token",
            "paper_flash_bytes",
            "paper_io_ms",
            "joined_io_ms_per_token",
            "flash_bytes_error",
            "io_error",
        }
        assert {name: row[name] for name in ours._fields} == ours._asdict()
        assert row["flash_bytes_error"] == row["flash_bytes_per_token"] / row["paper_flash_bytes"] - 1
        assert row["io_error"] == row["simulated_io_ms_per_token"] / row["paper_io_ms"] - 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "table2"])
def test_json_of_a_figure_has_its_rows_and_what_they_come_from(capsys, name):
    found = read_json(run(capsys, "--json", "--only", name)[1])[name]
    assert list(found) == [
        "title",
        "axis",
        "unit",
        "inputs",
        "rows",
        "median_error",
        "largest_error",
        "notes",
    ]
    figure = derived(name)
    assert found["rows"] == [
        {
            "series": row.series,
            "x": row.x,
            "ours": row.ours,
            "paper": row.paper,
            "error": row.error,
            "note": row.note,
        }
        for row in figure.rows
    ]
    errors = sorted(abs(row["error"]) for row in found["rows"] if row["error"] is not None)
    middle = len(errors) // 2
    assert found["median_error"] == pytest.approx((errors[middle] + errors[~middle]) / 2)
    assert found["largest_error"] == errors[-1]
    assert found["notes"] == list(figure.notes)
    words = ("title", "axis", "unit", "inputs")
    assert [found[word] for word in words] == [getattr(figure, word) for word in words]


def test_what_is_not_known_is_null():
    figure = Figure("t", "x", "u", "i", (FigureRow("a", 1.0, None, 2.0), FigureRow("a", 2.0, 1.0, None)))
    found = figure.as_json()
    assert [row["error"] for row in found["rows"]] == [None, None]
    assert (found["median_error"], found["largest_error"]) == (None, None)


def test_a_value_that_is_not_a_number_never_becomes_json(capsys, monkeypatch):
    figure = Figure("t", "x", "u", "i", (FigureRow("a", 1.0, float("nan"), 2.0),))
    monkeypatch.setattr(tables, "FIGURES", {"figure7": lambda: figure})
    with pytest.raises(ValueError, match="not JSON compliant"):
        main(["paper", "--json"])
    assert capsys.readouterr().out == ""


def test_only_names_some_in_the_paper_s_order_each_once(capsys):
    code, out, _ = run(capsys, "--json", "--only", "table3, figure2b,table3")
    assert code == 0
    assert list(read_json(out)) == ["figure2b", "table3"]


# --- tables -----------------------------------------------------------------------------------------


def test_tables_come_after_a_summary_with_every_figure(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    summary = out[: out.index("Derived from: ")]
    for name in NAMES:
        title = derived(name).title
        assert title in summary and title in out[len(summary) - len(title) - 1 :]
    assert re.search(r"Table 2.* 10 .* 2\.4 % .* 4\.4 %", summary)  # values, median, largest
    for note in derived("table3").notes:
        assert note.split()[-1] in out
    for name in ("OPT 6.7B, speculative, GPU", "+ bundling", "Llama 2 7B: gates as predictors, k = 1"):
        assert name in out


def test_tables_are_whole_and_curves_are_shortened_with_a_word_about_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = run(capsys, "--only", "figure4a,table3")[1]
    assert "14 of 62 rows; --json and --html have all" in out
    places = [int(line.split()[1]) for line in out.splitlines() if line.startswith(" s_agg(k) ")]
    assert places == [1, 6, 11, 16, 21, 26, 31]
    assert sum(row.series in out for row in derived("table3").rows) == len(derived("table3").rows)
    assert out.count("rows;") == 1


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "–"), (0.0, "0"), (2099.8, "2,100"), (87.48, "87.5"), (6.7109, "6.71"), (0.0421, "0.0421")],
)
def test_numbers_have_three_digits(number, text):
    assert digits(number) == text


def test_a_row_in_words():
    rows = (
        FigureRow("a", 1.0, 9.99996, 10.0),
        FigureRow("b", None, 11.0, 10.0, "a note"),
        FigureRow("c", 0.5, None, 92.0),
        FigureRow("d", 0.5, None, 0.477_64),
    )
    found = Figure("t", "x", "u", "i", rows).section("n")
    assert found.headings == ("series", "x", "ours, u", "paper", "error", "note")
    assert found.rows == (
        ("a", "1", "10.0", "10", "+0.0 %", ""),
        ("b", "", "11.0", "10", "+10.0 %", "a note"),
        ("c", "0.5", "–", "92", "", ""),
        ("d", "0.5", "–", "0.478", "", ""),
    )
    assert found.summary == ("t", "2", "5.0 %", "10.0 %", "i")


def test_a_table_without_notes_and_axis_has_no_columns_for_them():
    found = Figure("t", "", "u", "i", (FigureRow("a", None, 1.0, None),)).section("n")
    assert found.headings == ("value", "ours, u", "paper", "error")
    assert found.rows == (("a", "1.00", "–", ""),)
    assert found.summary == ("t", "0", "–", "–", "i")


@pytest.mark.parametrize("width", [70, 80, 200])
def test_everything_fits_a_terminal(capsys, monkeypatch, width):
    shown = Output(width=width, force_terminal=True, highlight=False, emoji=False, no_color=True)
    monkeypatch.setattr(command_tables, "_output", lambda: shown)
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", run(capsys)[1]).splitlines()]
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for name in NAMES:
        for note in [note for row in derived(name).rows if (note := getattr(row, "note", ""))]:
            assert note in text
        assert derived(name).title in text


def test_a_pipe_gets_no_blanks_at_the_end_of_a_line(capsys):
    assert not [line for line in run(capsys)[1].splitlines() if line != line.rstrip()]


def test_how_far_a_figure_agrees_stands_above_it(capsys):
    out = run(capsys, "--only", "figure7")[1]
    assert "7 values are compared: the median error is 67.8 %, the largest 91.5 %." in out
    assert "the figure is not reproduced" in out


# --- the page ---------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_says_its_language(whole):
    parsed = Page(whole)
    assert whole.startswith("<!DOCTYPE html>")
    assert parsed.open == []
    assert parsed.all("html") == [{"lang": "en"}]
    assert "LLM in a flash" in parsed.text["title"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.all("meta")
    assert len(parsed.all("h1")) == len(parsed.all("main")) == len(parsed.all("style")) == 1


def test_the_page_needs_nothing_else(whole):
    parsed = Page(whole)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "base", "image", "foreignobject"}
    assert "://" not in whole and "@import" not in whole
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset")]
        link = attributes.get("href")
        assert link is None or link.startswith("#") or (tag, link) == ("link", "data:,")
    assert all(word.startswith("url(#") for word in re.findall(r"url\([^)]{2}", whole))


def test_ids_are_unique_and_whatever_is_referred_to_is_there(whole):
    parsed = Page(whole)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', whole))
    wanted |= {attributes["aria-labelledby"] for attributes in parsed.all("section")}
    assert wanted <= set(ids)
    assert set(NAMES) <= wanted


def test_every_figure_is_on_the_page_with_a_plot_a_table_and_its_notes(whole):
    parsed = Page(whole)
    assert [attributes["id"] for attributes in parsed.all("section")] == NAMES
    plots = parsed.all("svg")
    assert len(plots) == len(parsed.all("figcaption")) == len(NAMES)
    for name, plot in zip(NAMES, plots, strict=True):
        assert plot["role"] == "img" and derived(name).title in plot["aria-label"]
        assert set(plot) == {"viewbox", "role", "aria-label"}  # as wide as there is room
        assert re.fullmatch(r"0 0 350 [2-9]\d\d", plot["viewbox"])
    assert len(parsed.all("table")) == len(parsed.all("caption")) == 1 + len(NAMES)
    rows = sum(len(derived(name).rows) for name in NAMES)
    assert len(parsed.all("tr")) == len(NAMES) + rows + len(parsed.all("table"))
    for name in NAMES:
        for note in derived(name).notes:
            assert note in parsed.text["li"]
        assert derived(name).inputs in parsed.text["p"]


def test_headings_of_tables_say_what_they_head(whole):
    heads = [attributes.get("scope") for attributes in Page(whole).all("th")]
    rows = sum(len(derived(name).rows) for name in NAMES)
    assert heads.count("row") == len(NAMES) + rows
    assert set(heads) == {"row", "col"}


def test_only_tables_scroll_and_the_keyboard_reaches_them(whole):
    scrolled = [attributes for attributes in Page(whole).all("div") if attributes.get("class") == "scroll"]
    assert len(scrolled) == 1 + len(NAMES)
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in scrolled)
    assert whole.count("overflow-x") == 1


def test_long_tables_are_folded_away(whole):
    folded = [name for name in NAMES if len(derived(name).rows) > FOLDED]
    assert folded == ["figure2b", "figure4a", "figure8"]
    assert len(Page(whole).all("details")) == len(folded)


def test_plots_take_their_colours_from_the_page_which_has_them_light_and_dark(whole):
    start, end = whole.index("<style>"), whole.index("</style>")
    sheet, body = whole[start:end], whole[end:]
    for colour in (*COLOURS, INK, GRID, "#ffffff"):
        assert colour not in body
    assert re.search(r"svg text \{[^}]*fill: currentColor", sheet)  # black unless told
    assert "DejaVu" not in body and "font-size: " in body  # in the page's font
    used = set(re.findall(r"var\((--colour\d)\)", body))
    assert used == {f"--colour{at}" for at in range(5)}
    light, dark = sheet.split("prefers-color-scheme: dark")
    for colour in used:
        assert f"{colour}: #" in light and f"{colour}: #" in dark


@pytest.mark.parametrize(
    "font", ["font: 11px 'A B', serif; ", "font-size: 11px; font-family: 'A B', serif; ", "font-size: 11px; "]
)
def test_words_in_a_plot_keep_their_size_and_take_the_page_s_font(font):
    svg = (
        f'<?xml?><svg viewBox="0 0 1 2" width="9"><text id="a" style="{font}text-anchor: end">x</text></svg>'
    )
    assert inline_svg(svg, "n", "l") == (
        '<svg viewBox="0 0 1 2" role="img" aria-label="l">'
        '<text id="n-a" style="font-size: 11px; text-anchor: end">x</text></svg>'
    )


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_lines_and_words_stand_out_from_their_ground(whole):
    # WCAG 2.2: 3 : 1 for what is drawn, 4.5 : 1 for words.
    for rules in whole[whole.index("<style>") : whole.index("body {")].split("@media"):
        found = {
            name: "#" + "".join(digit * (2 if len(value) == 3 else 1) for digit in value)
            for name, value in re.findall(r"--([\w]+): #([0-9a-f]+)", rules)
        }
        ground = luminance(found["ground"])
        for name, colour in found.items():
            light, dark = sorted([luminance(colour), ground], reverse=True)
            contrast = (light + 0.05) / (dark + 0.05)
            if name.startswith("colour"):
                assert contrast >= 3, name
            elif name in ("ink", "soft", "link"):
                assert contrast >= 4.5, name


def test_words_on_the_page_are_escaped():
    rows = (FigureRow(HOSTILE, 1.0, 2.0, 3.0, HOSTILE), FigureRow("b", 2.0, 2.0, 3.0))
    text = page({"figure7": Figure(HOSTILE, HOSTILE, HOSTILE, HOSTILE, rows, (HOSTILE,))})
    parsed = Page(text)
    assert not parsed.all("script")
    assert parsed.text["h2"] == parsed.text["li"] == HOSTILE
    assert HOSTILE in parsed.text["td"] and HOSTILE in parsed.text["svg"]
    assert [each["aria-label"].count(HOSTILE) for each in parsed.all("svg") + parsed.all("div")] == [1, 0, 1]


def test_words_in_a_terminal_are_no_markup(capsys, monkeypatch):
    word = "[red]loud[/red]"
    figure = Figure(word, word, word, word, (FigureRow(word, 1.0, 2.0, 3.0, word),), (word,))
    monkeypatch.setattr(tables, "FIGURES", {"figure7": lambda: figure})
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys)
    assert code == 0
    # The title twice; once each: inputs, axis, unit, series, note of the row, note.
    assert out.count(word) == 8


def test_the_same_figures_give_the_same_bytes(whole):
    one = {"figure7": derived("figure7")}
    assert page(one) == page(one)
    assert page(one).count("<section") == 1


# --- the plots --------------------------------------------------------------------------------------


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


# --- files and mistakes -----------------------------------------------------------------------------


def test_the_page_is_written_beside_the_tables_or_the_json(capsys, tmp_path):
    code, out, err = run(capsys, "--only", "figure7", "--html", str(tmp_path / "a.html"))
    assert (code, err) == (0, "")
    assert str(tmp_path / "a.html") in out.replace("\n", "")
    assert run(capsys, "--only", "figure7", "--json", "--html", str(tmp_path / "b.html"))[0] == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_text() == page({"figure7": derived("figure7")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


@pytest.mark.usefixtures("nothing_computed")
def test_an_existing_file_is_never_replaced(capsys, tmp_path):
    (tmp_path / "a.html").write_text("mine")
    code, out, err = run(capsys, "--html", str(tmp_path / "a.html"))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "never overwritten" in err
    assert (tmp_path / "a.html").read_text() == "mine"


@pytest.mark.usefixtures("nothing_computed")
def test_a_folder_that_is_not_there_is_found_before_the_work(capsys, tmp_path):
    code, out, err = run(capsys, "--html", str(tmp_path / "no" / "a.html"))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "no folder" in err


@pytest.mark.usefixtures("nothing_computed")
def test_without_matplotlib_one_sentence_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run(capsys, "--html", str(tmp_path / "a.html"))
    assert (code, out) == (2, "")
    assert err == "flashref paper: --html needs matplotlib; install flashref with its `plot` extra\n"
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_does_not_take_the_result_away(capsys, tmp_path, monkeypatch):
    expected = run(capsys, "--only", "figure7", "--json")[1]

    def full(path, size):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(paper, "create_file", full)
    code, out, err = run(capsys, "--only", "figure7", "--json", "--html", str(tmp_path / "a.html"))
    assert (code, out) == (2, expected)
    assert "No space left on device" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_fails_while_it_is_drawn_leaves_no_file(capsys, tmp_path, monkeypatch):
    def interrupted(plot, salt):
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "svg_text", interrupted)
    assert run(capsys, "--only", "figure7", "--html", str(tmp_path / "a.html"))[0] == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize("names", ["figure9", "table2,", "", "Table2"])
def test_a_figure_that_is_not_there_is_named_with_those_that_are(capsys, names):
    code, out, err = run(capsys, "--only", names)
    assert (code, out) == (2, "")
    wrong = repr("" if names == "table2," else names)
    assert err.count("\n") == 1 and f"no figure is called {wrong}" in err and ", ".join(NAMES) in err


def test_help_names_the_figures(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(name in out for name in NAMES)


def test_matplotlib_and_scipy_are_not_loaded_until_they_are_needed():
    words = "import sys, flashref.cli.paper; print({'matplotlib', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
