"""Tables and sentences of the commands: they fit a terminal, and a pipe gets whole lines without blanks."""

import pytest
from rich.cells import cell_len

from flashref.cli import tables
from flashref.cli.report import Output
from flashref.cli.tables import Column, print_table, say, table_width

COLUMNS = (Column("figure", words=True), Column("values compared"), Column("error"))
LONG = "Fig. 8: I/O time over the length of the text, from a cold start"
ROWS = ((LONG, "13", "4.4 %"), ("[red]loud[/red]", "1,000,000", "–"))


@pytest.fixture
def terminal(monkeypatch, capsys):
    """terminal(width, call): the lines that a terminal of this width gets."""

    def lines(width, call):
        shown = Output(width=width, force_terminal=True, highlight=False, emoji=False, no_color=True)
        monkeypatch.setattr(tables, "_output", lambda: shown)
        call()
        return [
            line.rstrip()
            for line in capsys.readouterr().out.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
        ]

    return lines


def test_a_pipe_gets_every_row_in_one_line_without_blanks_at_its_end(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    print_table(COLUMNS, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line.rstrip() for line in lines]
    _, headings, _, first, second, _ = lines
    assert headings.split("  ")[0] == " figure" and headings.endswith("values compared  error")
    assert first.startswith(f" {LONG} ") and first.endswith("   13  4.4 %")
    assert second.startswith(" [red]loud[/red] ") and second.endswith("1,000,000      –")
    assert max(map(cell_len, lines)) <= table_width(COLUMNS, ROWS, tables.WHOLE)


@pytest.mark.parametrize("width", [200, 80, 60, 40])
def test_a_table_fits_its_terminal_and_loses_nothing(terminal, width):
    lines = terminal(width, lambda: print_table(COLUMNS, ROWS))
    assert max(map(cell_len, lines)) <= width
    words = " ".join(lines).split()
    assert {*LONG.split(), "13", "1,000,000", "4.4", "[red]loud[/red]", "compared", "error"} <= set(words)


def test_headings_are_broken_before_cells(terminal):
    narrow = table_width(COLUMNS, ROWS)
    assert narrow == table_width(COLUMNS, ROWS, tables.WHOLE) - len("values compared") + len("1,000,000")
    lines = terminal(narrow, lambda: print_table(COLUMNS, ROWS))
    assert any(LONG in line for line in lines)
    assert [line.split() for line in lines[1:3]] == [["values"], ["figure", "compared", "error"]]


def test_sentences_are_broken_between_words_on_a_terminal_only(terminal, capsys, monkeypatch):
    sentence = "Never [bold]broken[/bold] in the middle of a word, however narrow."
    lines = terminal(20, lambda: say(sentence))
    assert len(lines) > 2 and " ".join(lines) == sentence
    monkeypatch.undo()
    say(sentence)
    assert capsys.readouterr().out == sentence + "\n"
