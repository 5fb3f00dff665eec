"""What `flashref run` says about its findings: sentences, tables, and what their columns mean."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flashref.ffn import SPARSE_ACTIVATIONS
from flashref.models.checkpoint import shown_activation
from flashref.models.sizes import size
from flashref.simulate.figures import TABLE_2
from flashref.simulate.findings import Findings
from flashref.simulate.methods import METHODS, Method
from flashref.simulate.numbers import digits
from flashref.simulate.scaled import FFN_BYTES
from flashref.simulate.sentences import COLUMN_MEANS, POLICY_MEANS

MEANS = {column: COLUMN_MEANS[column] for column in ("useful", "read", "reads", "in DRAM")} | {
    "moved": "counts the bytes of rows that change their place in memory",
    "simulated": "is the I/O time that the device's model gives",
    "measured": "is the I/O time that the same reads took here",
    "paper": "is the I/O time in the paper's Table 2",
}
SHORT_LIST = 8  # layers whose rows are listed one by one
METHODS_EXPLAINED = (
    f"naive {POLICY_MEANS['naive']} hybrid {POLICY_MEANS['hybrid']} "
    "Each line with a + adds one method to the line above it."
)


class Finding(NamedTuple):
    """A finding in words.

    Attributes:
        about: one or two words that say what it is about.
        text: whole sentences.
        held: whether a check held; None where nothing was checked.
    """

    about: str
    text: str
    held: bool | None = None


class MethodTable(NamedTuple):
    """Table 2 for one model.

    Attributes:
        title: what stands above the table.
        headings: of the column with the methods' names, and of the columns with numbers.
        rows: a row for each method, with a text for each heading.
        notes: the sentences below the table.
    """

    title: str
    headings: list[str]
    rows: list[list[str]]
    notes: list[str]


def findings_in_words(found: Findings) -> list[Finding]:
    """Put every finding but the tables into words.

    Args:
        found: the findings of a run.

    Returns:
        The findings in the order in which `flashref run` prints them.
    """
    parts = (_check, _dense, _sparsity, _time, _memory, _window, _peak, _predictor, _perplexity)
    return [finding for part in parts for finding in part(found)]


def method_tables(found: Findings) -> list[MethodTable]:
    """Write the tables of a run.

    Args:
        found: the findings of a run.

    Returns:
        The table of its own model, and the one of the same trace at OPT 6.7B's shape, if that was made.
    """
    methods, scaled = found.tables
    measured = ["measured"] if methods[0].measured_io_ms_per_token is not None else []
    columns = ["useful", "read", "reads", "in DRAM", "moved", "simulated", *measured]
    title = f"{found.model} on {found.device}: the methods of Table 2, per new token"
    notes = [_explained(columns), METHODS_EXPLAINED, _own_verdict(found)]
    tables = [_table(title, columns, methods, notes)]
    if scaled:
        title = (
            f"The same trace at OPT 6.7B's shape in fp16, half of it in memory, simulated on {found.device}"
        )
        columns = ["useful", "read", "reads", "in DRAM", "moved", "simulated", "paper"]
        notes = [f"{_explained(['paper'])} {_scaled_verdict(scaled)}"]
        tables.append(_table(title, columns, scaled, notes))
    return tables


def _check(found: Findings) -> Iterator[Finding]:
    verdict = found.verdict
    steps = f"in all {verdict.steps:,} steps (one for each token and layer)"
    if verdict.failure is not None:
        yield Finding("NOT verified", f"{verdict.failure}.", held=False)
    elif verdict.verified is None:
        yield Finding(
            "checked",
            f"{steps}, the set of resident neurons is what the definition gives, and the checksums of all "
            "bundles that were read are right. The output was not compared with weights in memory "
            "(--no-proof).",
            held=True,
        )
    else:
        yield Finding(
            "verified",
            f"{steps}, the bytes that were read, the set of resident neurons and the output, to the last "
            "bit, are what the definition gives from weights in memory.",
            held=True,
        )


def _dense(found: Findings) -> Iterator[Finding]:
    if found.same_as_dense is None:
        return
    with_activation = ""
    if found.activation != found.setup.prepared.own_activation:
        with_activation = f" with {shown_activation(*found.activation)}"
    same = "the same text" if found.same_as_dense else "another text"
    sentence = f"the dense model{with_activation} writes {same}."
    # A predictor that missed nothing gives the dense FFN, whatever else is in memory.
    missed = found.text.errors is not None and found.text.errors.false_negatives > 0
    if found.semantics == "resident" and missed:
        sentence += (
            " The predictor missed active neurons, and of these only the ones that happened to be in memory "
            "were summed, so another --memory may give another text."
        )
    yield Finding("text", sentence)


def _sparsity(found: Findings) -> Iterator[Finding]:
    name, _ = found.activation
    if name not in SPARSE_ACTIVATIONS:
        yield Finding(
            "activation",
            f"with {name} every neuron is active, so none can be skipped; --activation fatrelu:T runs the "
            "model with an activation that is zero for some.",
        )


def _time(found: Findings) -> Iterator[Finding]:
    account = found.text.account
    proof = ", the time of the proof included" if found.verdict.verified is not None else ""
    yield Finding(
        "time",
        f"{account.seconds:,.3g} seconds by the clock for the prompt and the new tokens{proof}; "
        f"{account.tokens_per_second:,.3g} new tokens a second.",
    )


def _memory(found: Findings) -> Iterator[Finding]:
    memory = found.memory
    share = f"{found.memory_fraction:.4g} of the model"
    if found.memory_fraction >= 1:
        share = "as much as the model has" if found.memory_fraction == 1 else "more than the model has"
    yield Finding(
        "memory",
        f"the budget is {size(memory.budget)} ({share}), and {size(memory.counted)} of it are used; biases "
        f"and the KV cache are not counted. The window has {found.setup.budget.window} tokens. "
        f"{rows_in_words(found.rows)}",
    )


def rows_in_words(rows: Sequence[int | None]) -> str:
    """Say how many rows the DRAM matrices have: of each layer where the layers are few, else the range.

    Args:
        rows: of each layer; None for a layer that is resident whole.
    """
    kept = [each for each in rows if each is not None]
    if not kept:
        return f"All {len(rows)} layers are resident whole."
    if len(rows) <= SHORT_LIST:
        whole = " (all: the layer is resident whole)" if None in rows else ""
        return f"Rows per layer{whole}: {', '.join('all' if each is None else str(each) for each in rows)}."
    number = f"{min(kept):,}" if min(kept) == max(kept) else f"{min(kept):,} to {max(kept):,}"
    others = f"; the other {len(rows) - len(kept)} are resident whole" if None in rows else ""
    where = "one layer" if len(kept) == 1 else f"each of {len(kept)} layers"
    return f"There are {number} rows in {where}{others}."


def _window(found: Findings) -> Iterator[Finding]:
    overflows, window = found.text.account.overflows, found.setup.budget.window
    if not overflows:
        return
    steps = (len(found.text.token_ids) - 1) * sum(rows is not None for rows in found.rows)
    yield Finding(
        "window",
        f"in {overflows:,} of {steps:,} steps the rows did not hold a whole window of {window} tokens, so "
        "older neurons left early, or new ones were read and not kept. Every predicted neuron was summed all "
        "the same; the cost is more reads.",
    )


def _peak(found: Findings) -> Iterator[Finding]:
    memory = found.memory
    peak = f"{size(memory.peak)} more than the {size(memory.before)} that Python took before the model"
    if memory.held is None:
        yield Finding(
            "peak memory",
            f"{peak}. The proof's weights are in it; --no-proof leaves them out, and holds the peak to the "
            "budget plus a stated allowance for everything else.",
        )
        return
    yield Finding(
        "peak memory",
        f"{peak}. It is {'within' if memory.held else 'MORE than'} the {size(memory.allowed)} that are "
        f"allowed: the budget of {size(memory.budget)}, {size(memory.kv_cache)} of KV cache, "
        f"{size(memory.trace)} for the record of predicted neurons, and an allowance of "
        f"{size(memory.allowance)} for biases, id tables and the work on one layer.",
        memory.held,
    )


def _predictor(found: Findings) -> Iterator[Finding]:
    errors = found.text.errors
    if errors is not None:
        yield Finding(
            "predictor",
            f"on this text it missed {errors.false_negative_rate:.1%} of the active neurons, and predicted "
            f"{errors.false_positive_rate:.1%} of the inactive ones.",
        )


def _perplexity(found: Findings) -> Iterator[Finding]:
    if found.perplexity is None:
        return
    dense, flash, unchanged = found.perplexity
    figures = f"{_figure(flash)} from flash"
    if dense is not None:
        figures = f"{_figure(dense)} dense and {figures} ({flash / dense - 1:+.2%})"
    if dense is not None and unchanged is not None:
        own = shown_activation(*found.setup.prepared.own_activation)
        run = f"{shown_activation(*found.activation)} ({dense / unchanged - 1:+.2%})"
        figures = f"{_figure(unchanged)} dense with the model's own {own}; with {run}, {figures}"
    yield Finding("perplexity", f"per token of held-out text, {figures}.")


def _figure(perplexity: float) -> str:
    return f"{perplexity:.3f}" if perplexity < 1e6 else f"{perplexity:.2e}"


def _table(title: str, columns: list[str], methods: Sequence[Method], notes: list[str]) -> MethodTable:
    headings, rows = ["method", *columns], []
    for method in methods:
        cells = {
            "method": METHODS[method.name].label,
            "useful": size(method.useful_bytes_per_token),
            "read": size(method.flash_bytes_per_token),
            "reads": f"{method.reads_per_token:,.0f}",
            "in DRAM": size(method.dram_bytes),
            "moved": size(method.dram_moved_bytes_per_token),
            "simulated": f"{digits(method.simulated_io_ms_per_token)} ms",
            "measured": f"{digits(method.measured_io_ms_per_token)} ms",
            "paper": f"{digits(TABLE_2[method.name][1])} ms",
        }
        rows.append([cells[heading] for heading in headings])
    return MethodTable(title, headings, rows, notes)


def _explained(columns: Sequence[str]) -> str:
    return " ".join(f"The “{column}” column {MEANS[column]}." for column in columns)


def _own_verdict(found: Findings) -> str:
    """Say what the methods gain on this model, after what bundles of this size allow."""
    naive, last = found.tables.methods[0], found.tables.methods[-1]
    if last.useful_bytes_per_token == 0:
        return (
            "With all methods together nothing had to be read: the neurons that the new tokens needed were "
            "in memory already."
        )
    layout, small = found.setup.layouts[0], ""
    if layout.bundle_bytes < layout.block:
        amplified = last.flash_bytes_per_token / last.useful_bytes_per_token
        small = (
            f"This model is too small to gain much: a neuron's bundle has {layout.bundle_bytes} bytes and a "
            f"block {layout.block:,}, so {amplified:.1f} bytes are read for one that is needed. "
        )
    how, before, after = "simulated", naive.simulated_io_ms_per_token, last.simulated_io_ms_per_token
    if naive.measured_io_ms_per_token is not None and last.measured_io_ms_per_token is not None:
        how, before, after = "measured", naive.measured_io_ms_per_token, last.measured_io_ms_per_token
    verdict = "takes as long"
    if after < before:
        verdict = f"is {before / after:.1f} times faster"
    if after > before:
        verdict = f"is {after / before:.1f} times slower"
    useful = naive.useful_bytes_per_token / last.useful_bytes_per_token
    return (
        f"{small}With all methods together, a token needs {useful:.0f} times fewer bytes than with naive, "
        f"and its I/O {verdict} ({digits(before)} ms → {digits(after)} ms, {how})."
    )


def _scaled_verdict(scaled: Sequence[Method]) -> str:
    """Say why these figures are not the paper's: other shares of the FFN are predicted and read."""
    predicted, new = (method.useful_bytes_per_token / FFN_BYTES for method in (scaled[2], scaled[4]))
    return (
        f"This trace has {predicted:.1%} of the FFN predicted for a token, and {new:.1%} that must still be "
        "read although there is a window; the paper's model has about 10% and 2.4%, so the times differ."
    )
