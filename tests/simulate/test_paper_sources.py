"""The paper's figures, derived: no value comes from the result that it is compared with."""

import re
from pathlib import Path

import pytest
from paper_figures import COMPUTE, derived, ours, value

import flashref.simulate.paper
from flashref.simulate.figures import TABLE_2, paper_figure
from flashref.simulate.paper import appendix_c, coactivation, figure, latency, table2, table3
from flashref.simulate.paper.derivation import shape_trace
from flashref.storage.device import PRESETS

SOURCES = sorted(Path(flashref.simulate.paper.__file__).parent.glob("*.py"))


def nonsense(figures):
    """The paper's values as nobody printed them; memory, tokens and ranks as they are."""

    def paper_figure(name):
        data = figures(name)
        if name == "fig7":
            return [{**point, "flash": 1 + 7 * at % 5} for at, point in enumerate(data)]
        return [[x, 1 + 7 * at % 5] for at, (x, _) in enumerate(data)]

    return paper_figure


@pytest.fixture
def short(monkeypatch):
    """Traces of a few tokens: whether a value depends on the paper's shows in them as well."""
    for module in (table2, table3, latency):
        monkeypatch.setattr(
            module, "shape_trace", lambda shape, process, *_: shape_trace(shape, process, 6, 3)
        )
    monkeypatch.setattr(latency, "LONGEST", 3)
    monkeypatch.setattr(latency, "COLD_TOKENS", 6)
    monkeypatch.setattr(latency, "SHOWN", (0, 2, 5))
    monkeypatch.setattr(coactivation, "PROFILED", 64)
    monkeypatch.setattr(coactivation, "COUNTED", 8)


@pytest.mark.usefixtures("short")
def test_table_2_is_not_derived_from_table_2(monkeypatch):
    before = COMPUTE["table2"]()
    monkeypatch.setattr(table2, "TABLE_2", dict.fromkeys(TABLE_2, (1, 1.0)))
    again = COMPUTE["table2"]()
    assert [row.paper_io_ms for row in again.rows] == [1.0] * 5
    assert [row[:3] + row[5:] for row in again.rows] == [row[:3] + row[5:] for row in before.rows]


@pytest.mark.usefixtures("short")
def test_table_3_is_not_derived_from_table_3(monkeypatch):
    before = COMPUTE["table3"]()
    monkeypatch.setattr(table3, "PAPER", dict.fromkeys(table3.PAPER, 1.0))
    again = COMPUTE["table3"]()
    assert {row.paper for row in again.rows} == {1.0}
    assert ours(again) == ours(before)


def test_appendix_c_is_not_derived_from_appendix_c_s_sums(monkeypatch):
    before = derived("appendix_c")
    monkeypatch.setattr(appendix_c, "PAPER", dict.fromkeys(appendix_c.PAPER, (1.0, 2.0, 3.0, 4.0)))
    monkeypatch.setattr(appendix_c, "PERSIMMON_ALL", 5.0)
    monkeypatch.setattr(appendix_c, "LLAMA_GATES", 6.0)
    again = COMPUTE["appendix_c"]()
    assert {row.paper for row in again.rows} == {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None}
    assert ours(again) == ours(before)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", ["figure7", "figure8"])
def test_figures_7_and_8_are_not_derived_from_themselves(monkeypatch, name):
    before = COMPUTE[name]()
    monkeypatch.setattr(latency, "paper_figure", nonsense(paper_figure))
    again = COMPUTE[name]()
    assert [row.paper for row in again.rows] != [row.paper for row in before.rows]
    assert ours(again) == ours(before)


@pytest.mark.usefixtures("short")
def test_coactivation_is_not_derived_from_figure_12_b_to_d(monkeypatch):
    before = COMPUTE["coactivation"]()
    monkeypatch.setattr(coactivation, "PAPER", {1: 1.0, 3: 2.0, 7: 3.0})
    again = COMPUTE["coactivation"]()
    assert {row.paper for row in again.rows if "friend," in row.series} == {1.0, 2.0, 3.0, None}
    assert ours(again) == ours(before)


@pytest.mark.parametrize("name", ["figure2b", "figure4a"])
def test_what_is_a_fit_says_so(name):
    assert "fitted" in derived(name).inputs


def test_what_repeats_an_input_or_is_1_by_definition_has_no_error():
    figure_12a = [row for row in derived("coactivation").rows if "(12a)" in row.series]
    ones = [value("figure7", "I/O time", 50), value("figure8", "CPU, nucleus", 0)]
    assert len(figure_12a) == len(coactivation.RANKS)
    for row in [*figure_12a, *ones]:
        assert row.error is None and row.note


def test_the_device_tuned_to_table_2_is_used_nowhere():
    assert len(SOURCES) >= 8
    for path in SOURCES:
        assert not re.search(r"paper_m1max(?!_fig2b)", path.read_text()), path
    assert figure.DEVICE_NAME == "paper_m1max_fig2b"
    assert figure.DEVICE is PRESETS["paper_m1max_fig2b"] is not PRESETS["paper_m1max"]
    assert all(
        "paper_m1max_fig2b" in derived(name).inputs for name in set(COMPUTE) - {"figure4a", "appendix_c"}
    )
