"""What `flashref run` prints is there for a notebook too: findings as data, as sentences and as tables."""

import json

import opt_runs
import pytest
from opt_runs import without_peak

from flashref.models import open_model
from flashref.simulate.findings import find
from flashref.simulate.run_report import findings_in_words, method_tables, rows_in_words

pytestmark = opt_runs.IGNORED_WARNINGS
no_waiting_for_the_disk = opt_runs.no_waiting_for_the_disk
model = opt_runs.model
run = opt_runs.run
report = opt_runs.report


def test_a_notebook_gets_what_the_command_prints(run, report, model):
    with open_model(model, memory=0.95) as opened:
        found = find(opened, opened.generate("In the", 3), "paper_m1max_fig2b")
    assert found.held and without_peak(json.dumps(found.as_json())) == report()
    told = run().out
    for finding in findings_in_words(found):
        if finding.about not in ("time", "peak memory"):  # they differ from run to run
            assert f"\n{finding.about}: {finding.text}\n" in told
    for table in method_tables(found):
        assert {len(row) for row in table.rows} == {len(table.headings)}
        assert all(f"\n{line}\n" in told for line in (table.title, *table.notes))


def test_findings_say_what_was_checked_and_whether_it_held(model):
    with open_model(model, memory=0.95, predictor="exact") as opened:
        found = find(opened, opened.generate("In the", 3), "paper_m1max_fig2b")
    abouts = {finding.about: finding.held for finding in findings_in_words(found)}
    assert abouts["verified"] is True and abouts["text"] is None
    wrong = found._replace(verdict=found.verdict._replace(verified=False, failure="layer 0: wrong bytes"))
    first, *_ = findings_in_words(wrong)
    assert (first.about, first.text, first.held) == ("NOT verified", "layer 0: wrong bytes.", False)
    above = found._replace(memory=found.memory._replace(held=False))
    assert found.held and not wrong.held and not above.held


def test_semantics_of_the_callers_own_have_their_functions_name(model):
    def those_predicted(predicted, in_dram):
        return predicted

    for semantics, name in (("predicted", "predicted"), (those_predicted, "those_predicted")):
        with open_model(model, memory=0.95, semantics=semantics, proof=False) as opened:
            found = find(opened, opened.generate("In the", 2), "paper_m1max_fig2b")
        assert found.semantics == name and found.tables.scaled == ()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((3, 0, 2), "Rows per layer: 3, 0, 2."),
        ((None, 2), "Rows per layer (all: the layer is resident whole): all, 2."),
        ((4156,) * 32, "There are 4,156 rows in each of 32 layers."),
        ((7, 4156, *range(8, 15)), "There are 7 to 4,156 rows in each of 9 layers."),
        (
            (None,) * 8 + (5, 6),
            "There are 5 to 6 rows in each of 2 layers; the other 8 are resident whole.",
        ),
        ((None,) * 8 + (5,), "There are 5 rows in one layer; the other 8 are resident whole."),
        ((None,) * 9, "All 9 layers are resident whole."),
    ],
)
def test_rows_of_many_layers_are_summarised(rows, words):
    assert rows_in_words(rows) == words


def test_the_table_and_its_verdict_say_what_the_figures_are(model):
    with open_model(model, memory=0.95) as opened:
        found = find(opened, opened.generate("In the", 3), "paper_m1max_fig2b")
    naive, *between, last = found.tables.methods
    naive = naive._replace(
        useful_bytes_per_token=3_000_000,
        flash_bytes_per_token=4_000_000,
        reads_per_token=5,
        dram_bytes=6_000,
        dram_moved_bytes_per_token=7_000,
        simulated_io_ms_per_token=2.5,
    )

    def shown(milliseconds):
        ours = last._replace(
            useful_bytes_per_token=1_000_000,
            flash_bytes_per_token=2_500_000,
            simulated_io_ms_per_token=milliseconds,
        )
        tables = found.tables._replace(methods=(naive, *between, ours), scaled=())
        return method_tables(found._replace(tables=tables))[0]

    assert shown(1.25).rows[0] == ["naive", "3.00 MB", "4.00 MB", "5", "6.00 kB", "7.00 kB", "2.50 ms"]
    verdict = shown(1.25).notes[-1]
    assert (
        "so 2.5 bytes are read for one that is needed" in verdict and "needs 3 times fewer bytes" in verdict
    )
    assert "its I/O is 2.0 times faster (2.50 ms → 1.25 ms, simulated)." in verdict
    assert "its I/O is 2.0 times slower (2.50 ms → 5.00 ms, simulated)." in shown(5.0).notes[-1]
    assert "its I/O takes as long (2.50 ms → 2.50 ms, simulated)." in shown(2.5).notes[-1]
    assert found.same_as_dense is (found.text.new_ids == found.dense_ids)
    other = found._replace(dense_ids=tuple(token + 1 for token in found.text.new_ids))
    assert other.same_as_dense is False and found._replace(dense_ids=None).same_as_dense is None
    assert found._replace(dense_ids=found.text.new_ids).same_as_dense is True


def test_the_shares_of_opt_are_of_its_whole_ffn(model):
    with open_model(model, memory=0.95) as opened:
        found = find(opened, opened.generate("In the", 3), "paper_m1max_fig2b")
    ffn_bytes = 32 * 16_384 * 2 * 4_096 * 2  # layers, neurons, matrices, width, bytes of fp16
    useful = (1, 2, ffn_bytes // 4, 3, ffn_bytes // 20)
    methods = zip(found.tables.methods, useful, strict=True)
    scaled = tuple(method._replace(useful_bytes_per_token=each) for method, each in methods)
    _, table = method_tables(found._replace(tables=found.tables._replace(scaled=scaled)))
    assert "25.0% of the FFN predicted for a token, and 5.0% that must still be read" in table.notes[-1]
