"""`flashref paper`: its JSON, its tables, its files and its mistakes, from figures that are computed once."""

import errno
import json
import re
import subprocess
import sys

import pytest
from command_line import called
from paper_figures import NAMES, derived

from flashref.cli import main, paper
from flashref.cli import tables as command_tables
from flashref.cli.report import Output
from flashref.simulate.numbers import digits
from flashref.simulate.paper import plots, tables
from flashref.simulate.paper.figure import Figure, FigureRow
from flashref.simulate.paper.page import page


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
    return called(capsys, "paper", *words)


def read_json(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


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
    assert found["median_error"] == (errors[middle] + errors[~middle]) / 2
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
    assert "These are 14 of 62 rows; --json and --html have all of them." in out
    places = [int(line.split()[1]) for line in out.splitlines() if line.startswith(" s_agg(k) ")]
    assert places == [1, 6, 11, 16, 21, 26, 31]
    assert sum(row.series in out for row in derived("table3").rows) == len(derived("table3").rows)
    assert out.count("These are") == 1


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
    assert "7 values are compared: the median error is 67.8 %, and the largest is 91.5 %." in out
    assert "the figure is not reproduced" in out


def test_words_in_a_terminal_are_no_markup(capsys, monkeypatch):
    word = "[red]loud[/red]"
    figure = Figure(word, word, word, word, (FigureRow(word, 1.0, 2.0, 3.0, word),), (word,))
    monkeypatch.setattr(tables, "FIGURES", {"figure7": lambda: figure})
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys)
    assert code == 0
    # The title twice; once each: inputs, axis, unit, series, note of the row, note.
    assert out.count(word) == 8


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
