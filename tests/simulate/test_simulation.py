"""`simulate` and `paper_tables` as a notebook calls them: plain arguments, answers that show themselves."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from paper_figures import derived

from flashref.cli import main
from flashref.models.budget import parse_memory
from flashref.simulate import Drawn, paper_tables, simulate
from flashref.simulate.paper import tables
from flashref.simulate.policies import POLICIES
from flashref.simulate.sweep import Estimate, Impossible
from flashref.simulate.tokens import Host
from flashref.simulate.trace import trace_of
from flashref.simulate.trace_file import Description, save_trace
from flashref.storage.device import PRESETS
from flashref.types import DomainError

DRAWN = Drawn(tokens=4, warm=2, seed=3)
ASKED = {"policies": ["naive", "window"], "memory": [0.6, 0.9], "rows": "bundled"}


def cells(html):
    """The cells of a table, row by row."""

    class Cells(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag == "tr":
                self.rows.append([])

        def handle_data(self, data):
            if self.rows and data.strip():
                self.rows[-1].append(data)

    parser = Cells()
    parser.rows = []
    parser.feed(html)
    return parser.rows


def test_the_call_gives_what_the_command_prints(capsys):
    simulation = simulate("tiny", trace=DRAWN, device="ufs40", window=[None, 2], host=Host(10**9, 0), **ASKED)
    words = ["--model", "tiny", "--tokens", "4", "--warm", "2", "--seed", "3", "--device", "ufs40"]
    words += ["--window", "auto,2", "--copy-bandwidth", "1", "--compute-bandwidth", "0"]
    words += ["--policy", "naive,window", "--memory", "0.6,0.9", "--rows", "bundled"]
    assert main(["simulate", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(simulation.as_json()))
    assert [each["policy"] for each in simulation.records()] == ["naive", *["window"] * 4]


def test_one_value_stands_for_a_list_of_it():
    single = simulate("tiny", trace=DRAWN, policies="window", memory=0.9, window=2, order="use", max_gap=64)
    several = simulate(
        "tiny", trace=DRAWN, policies=("window",), memory=["0.9"], window=[2, 2], order=["use"], max_gap=[64]
    )
    assert single.answers == several.answers and len(single.answers) == 2
    assert {each.configuration.max_gap for each in single.estimates} == {64}


def test_devices_traces_and_shapes_may_be_values(tmp_path):
    first = simulate("tiny", trace=DRAWN, device="ufs40", **ASKED)
    again = simulate(first.shape, trace=first.trace, device={"mine": PRESETS["ufs40"]}, **ASKED)
    assert [each[1:] for each in again.answers] == [each[1:] for each in first.answers]
    assert {each.configuration.device for each in again.answers} == {"mine"}
    assert again.devices["mine"].errors is None
    save_trace(tmp_path / "trace", first.trace, Description("tiny", "a test"))
    loaded = simulate("tiny", trace=tmp_path / "trace", device="ufs40", **ASKED)
    assert loaded.answers == first.answers and "a test" in loaded.description.source


def test_a_memory_that_is_too_small_is_an_answer_and_if_all_are_an_error():
    simulation = simulate("tiny", trace=DRAWN, policies="window", memory=["1kB", 0.9], rows="bundled")
    impossible, estimate = simulation.answers
    assert isinstance(impossible, Impossible) and isinstance(estimate, Estimate)
    assert simulation.estimates == [estimate]
    assert simulation.real("paper_m1max_fig2b", parse_memory("1kB")) == []
    assert simulation.real("paper_m1max_fig2b", 0.9) == [estimate]
    with pytest.raises(DomainError, match="the smallest that works"):
        simulate("tiny", trace=DRAWN, policies="window", memory="1kB")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"policies": ["naive", "random"]}, "policy 'random' is unknown; use naive, "),
        ({"order": "alphabetic"}, "order 'alphabetic' is unknown; use natural, "),
        ({"rows": "loose"}, "rows 'loose' is unknown; use unbundled, bundled"),
        ({"placement": "anywhere"}, "placement 'anywhere' is unknown; use swap_with_last, "),
        ({"memory": 1.5}, "more than 0 and at most 1"),
        ({"memory": []}, "a list of values to simulate is empty"),
        ({"window": 7}, "a window of 7 tokens is longer than the trace of 6 tokens"),
        ({"device": "floppy"}, "floppy: neither a file nor a preset"),
        ({"shape": "opt-7b"}, "opt-7b: there is neither such a config.json nor such a preset"),
        ({"trace": trace_of([[[0]]], [4])}, "the trace: is a trace of 1 layers of 4 neurons, but tiny has 4"),
    ],
)
def test_a_wrong_value_is_named_with_those_that_are_right(wrong, said):
    with pytest.raises(DomainError) as refusal:
        simulate(**{"shape": "tiny", "trace": DRAWN, **wrong})
    assert said in str(refusal.value)


def test_progress_ends_with_the_last_configuration():
    told = []
    simulate("tiny", trace=DRAWN, progress=lambda *what: told.append(what), **ASKED)
    assert told[:2] == [("trace", 0, 1), ("trace", 1, 1)]
    assert told[2:] == [("configurations", done, 3) for done in (1, 2, 3)]


def test_a_notebook_shows_a_row_for_each_configuration_and_no_trace():
    simulation = simulate("tiny", trace=DRAWN, **ASKED)
    heading, *rows = cells(simulation._repr_html_())
    assert heading[:2] == ["policy", "memory"] and "refused" not in heading
    assert [row[0] for row in rows] == ["naive", "window", "window"]
    assert repr(simulation) == "<Simulation of tiny in F16: 3 of 3 configurations are possible>"


def test_a_drawn_trace_has_the_densities_of_the_shape():
    simulation = simulate("opt-125m", trace=Drawn(tokens=40), policies="naive")
    assert (simulation.trace.tokens, simulation.trace.first_counted) == (72, 32)
    density = len(simulation.trace.ids) / 72 / sum(simulation.trace.units)
    assert density == pytest.approx(np.mean(simulation.shape.densities), rel=0.05)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_explained(policy):
    from flashref.simulate.sentences import POLICY_MEANS

    assert POLICY_MEANS[policy].endswith(".")


def test_the_paper_s_tables_by_name(monkeypatch):
    monkeypatch.setattr(tables, "FIGURES", {name: lambda name=name: derived(name) for name in tables.FIGURES})
    told = []
    results = paper_tables(["table2", "figure2b", "table2"], lambda *what: told.append(what))
    assert results == {"figure2b": derived("figure2b"), "table2": derived("table2")}
    assert list(results) == ["figure2b", "table2"] and [each[1:] for each in told] == [(0, 2), (1, 2)]
    assert list(paper_tables()) == list(tables.FIGURES)
    for result in results.values():
        heading, *rows = cells(result._repr_html_())
        assert len(rows) == len(result.rows) and "error" in heading
    with pytest.raises(DomainError, match="no figure is called 'figure9'; use figure2b, "):
        paper_tables(["figure9"])
