"""What `flashref run` found: as `--json` prints it, and as sentences and tables."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.markup import escape
from rich.text import Text as Styled

from flashref.bundle import Layout
from flashref.cli.report import Output, milliseconds, size
from flashref.cli.tables import Column, print_table
from flashref.ffn import SPARSE_ACTIVATIONS
from flashref.models.budget import Amount
from flashref.models.checkpoint import shown_activation
from flashref.models.memory import Memory
from flashref.models.perplexity import FlashPerplexity
from flashref.models.proof import Proven
from flashref.models.setup import Setup
from flashref.models.text import GeneratedText
from flashref.simulate.figures import TABLE_2
from flashref.simulate.methods import METHODS, Method
from flashref.simulate.runs import Tables
from flashref.simulate.scaled import FFN_BYTES


class Findings(NamedTuple):
    """Everything that `flashref run` found.

    name: of the model; names: of the semantics, the device and the reader, as they were asked for; dense_ids:
    the new tokens of the dense model, None without a proof; perplexity: None where it was not measured.
    """

    name: str
    names: tuple[str, str, str]
    setup: Setup
    text: GeneratedText
    dense_ids: tuple[int, ...] | None
    perplexity: FlashPerplexity | None
    verdict: Proven
    memory: Memory
    tables: Tables

    @property
    def rows(self) -> list[int | None]:
        """The rows of each layer's DRAM matrix; None for a layer that is resident whole."""
        dense, capacities = self.setup.demand.dense, self.setup.budget.capacities
        return [None if layer in dense else rows for layer, rows in enumerate(capacities)]

    @property
    def memory_fraction(self) -> float:
        """The memory as a share of the model's bytes."""
        asked = self.setup.prepared.request.memory
        if isinstance(asked, Amount):
            return self.setup.budget.memory / self.setup.demand.total
        return asked

    @property
    def same_as_dense(self) -> bool | None:
        """Whether the text is the dense model's; None without a proof."""
        return None if self.dense_ids is None else self.text.new_ids == self.dense_ids

    @property
    def activation(self) -> tuple[str, float]:
        """The activation that was run, and its tau."""
        config = self.setup.prepared.checkpoint.config
        return config.activation, config.tau


def as_json(found: Findings) -> dict[str, Any]:
    """The object of `--json`: names and plain values, in this order."""
    text, setup, errors = found.text, found.setup, found.text.errors
    semantics, device, reader = found.names
    (name, tau), (own, own_tau) = found.activation, setup.prepared.own_activation
    measured = found.perplexity or FlashPerplexity(None, math.inf, None)
    return {
        "model": found.name,
        "prompt": text.prompt,
        "text": text.text,
        "token_ids": list(text.token_ids),
        "tokens": len(text.new_ids),
        "seconds": text.account.seconds,
        "tokens_per_second": text.account.tokens_per_second,
        "activation": {"name": name, "tau": tau, "own": own, "own_tau": own_tau},
        "semantics": semantics,
        "window": setup.budget.window,
        "rows": found.rows,
        "memory_fraction": found.memory_fraction,
        "memory": found.memory._asdict(),
        "device": device,
        "reader": reader,
        "direct": setup.storage.direct,
        "verified": found.verdict.verified,
        "same_as_dense": found.same_as_dense,
        "overflows": text.account.overflows,
        "predictor": {
            "false_negative_rate": None if errors is None else errors.false_negative_rate,
            "false_positive_rate": None if errors is None else errors.false_positive_rate,
        },
        # JSON has no infinity: a loss beyond every float is null, as is one that was not measured.
        "perplexity": {
            which: value if value is not None and math.isfinite(value) else None
            for which, value in measured._asdict().items()
        },
        "methods": [method._asdict() for method in found.tables.methods],
        "scaled": [method._asdict() for method in found.tables.scaled],
    }


def show(found: Findings, text_too: bool) -> None:
    """Print everything on stdout; the text only if it was not shown while it was written."""
    out = Output(highlight=False, emoji=False)
    if text_too:
        prompt, written = found.text.shown
        out.print(Styled.assemble((prompt, "bold"), written), soft_wrap=True)
    out.print()
    for line in (*_verdict_lines(found), *_cost_lines(found), *_memory_lines(found), *_quality_lines(found)):
        out.print(line)
    _, device, _ = found.names
    methods, scaled = found.tables
    out.print()
    title = f"{found.name} on {device}: bytes, reads and I/O time per new token"
    out.print(Styled(title, "bold"), soft_wrap=True)
    _print_methods(methods, paper=False)
    out.print(_size_sentence(methods, found.setup.layouts[0]))
    if not scaled:
        return
    out.print()
    title = f"simulated: the same trace at OPT 6.7B's shape in fp16, half in memory, on {device}"
    out.print(Styled(title, "bold"), soft_wrap=True)
    _print_methods(scaled, paper=True)
    out.print(_scaled_sentence(scaled))


def _verdict_lines(found: Findings) -> Iterator[str]:
    verdict, (activation, tau) = found.verdict, found.activation
    if verdict.failure is not None:
        yield f"[red]NOT verified[/red]: {escape(verdict.failure)}"
    elif verdict.verified is None:
        yield (
            "not verified: --no-proof keeps the weights out of memory, so that nothing was compared with "
            "them; the checksums of all bundles that were read are right"
        )
    else:
        yield (
            f"[green]verified[/green]: in {verdict.steps} steps of a layer, the bytes read, the resident set "
            "and the output to the last bit are what the definition gives from weights in memory"
        )
    if found.same_as_dense is not None:
        changed = found.activation != found.setup.prepared.own_activation
        model = "dense model's" + f" of {shown_activation(activation, tau)}" * changed
        semantics, *_ = found.names
        dense = f"the text {'is' if found.same_as_dense else 'differs from'} the {model}"
        # A predictor that missed nothing gives the dense FFN, whatever else is in memory.
        missed = found.text.errors is not None and found.text.errors.false_negatives > 0
        depends = semantics == "resident" and missed
        yield f"{dense}, with {semantics} semantics{'; it may depend on the memory given' * depends}"
    if activation not in SPARSE_ACTIVATIONS:
        yield (
            f"nothing is sparse: with {activation} every neuron is active; "
            "--activation fatrelu:T runs the model with another"
        )


def _cost_lines(found: Findings) -> Iterator[str]:
    account = found.text.account
    proof = ", with the time that the proof takes" if found.verdict.verified is not None else ""
    yield (
        f"time: {account.seconds:,.3g} seconds by the clock, {account.tokens_per_second:,.3g} new tokens "
        f"a second{proof}"
    )


def _memory_lines(found: Findings) -> Iterator[str]:
    memory, window = found.memory, found.setup.budget.window
    rows = ", ".join("all" if rows is None else str(rows) for rows in found.rows)
    share = f"{found.memory_fraction:.4g} of the model"
    if found.memory_fraction > 1:
        share = f"{size(memory.budget)}, more than the model"
    yield (
        f"memory: {share}, {size(memory.counted)} used (biases and the "
        f"KV cache not counted), a window of {window}, rows per layer {rows}"
    )
    if found.text.account.overflows:
        sparse = sum(rows is not None for rows in found.rows)
        yield (
            f"in {found.text.account.overflows} of {(len(found.text.token_ids) - 1) * sparse} steps the rows "
            f"did not hold a whole window of {window}: tokens left early, or neurons were read and "
            "not kept; every predicted neuron was summed all the same, for more reads"
        )
    peak = f"peak of memory: {size(memory.peak)} above the {size(memory.before)} of Python before the model"
    allowed = (
        f"{size(memory.allowed)}: a budget of {size(memory.budget)}, and beside it {size(memory.kv_cache)} "
        f"of KV cache, {size(memory.trace)} for the record of what was predicted, and an allowance of "
        f"{size(memory.allowance)} for biases, id tables and the work on one layer"
    )
    if memory.held is None:
        yield f"{peak}, with the weights that the proof has in memory; --no-proof holds it to the budget"
    elif memory.held:
        yield f"{peak}, [green]within[/green] {allowed}"
    else:
        yield f"{peak}, [red]MORE than[/red] {allowed}"


def _quality_lines(found: Findings) -> Iterator[str]:
    errors = found.text.errors
    if errors is not None:
        yield (
            f"predictor, on this text: {errors.false_negative_rate:.1%} of the active neurons missed, "
            f"{errors.false_positive_rate:.1%} of the inactive ones read although they give nothing"
        )
    if found.perplexity is None:
        return
    dense, flash, unchanged = found.perplexity
    if dense is None:
        yield f"perplexity per token on held-out text: {_figure(flash)} from flash"
        return
    before = after = ""
    if unchanged is not None:
        own = shown_activation(*found.setup.prepared.own_activation)
        before = f"{_figure(unchanged)} with {own} as it is, "
        after = f" with {shown_activation(*found.activation)} ({dense / unchanged - 1:+.2%})"
    yield (
        f"perplexity per token on held-out text: {before}{_figure(dense)} dense{after}, {_figure(flash)} "
        f"from flash ({flash / dense - 1:+.2%})"
    )


def _figure(perplexity: float) -> str:
    return f"{perplexity:.3f}" if perplexity < 1e6 else f"{perplexity:.2e}"


def _print_methods(methods: Sequence[Method], paper: bool) -> None:
    measured = methods[0].measured_io_ms_per_token is not None
    headings = ["useful", "read", "reads", "in DRAM", "moved", "simulated"]
    headings += ["measured"] * measured + ["paper"] * paper
    rows = []
    for method in methods:
        cells = [
            METHODS[method.name].label,
            size(method.useful_bytes_per_token),
            size(method.flash_bytes_per_token),
            f"{method.reads_per_token:,.0f}",
            size(method.dram_bytes),
            size(method.dram_moved_bytes_per_token),
            milliseconds(method.simulated_io_ms_per_token),
        ]
        if method.measured_io_ms_per_token is not None:
            cells.append(milliseconds(method.measured_io_ms_per_token))
        rows.append(cells + [milliseconds(TABLE_2[method.name][1])] * paper)
    print_table([Column("method", words=True), *map(Column, headings)], rows)


def _size_sentence(methods: Sequence[Method], layout: Layout) -> str:
    """What the table means for bundles of this size, from its own figures."""
    hybrid = (
        "hybrid keeps as many whole layers as fit in memory, and reads the rest for every token; each line "
        "with a + adds a method to the one above it."
    )
    naive, last = methods[0], methods[-1]
    measured = last.measured_io_ms_per_token is not None and naive.measured_io_ms_per_token is not None
    before, after = (
        (method.measured_io_ms_per_token if measured else method.simulated_io_ms_per_token) or 0.0
        for method in (naive, last)
    )
    if last.useful_bytes_per_token == 0:
        return (
            f"{hybrid} With all of them together nothing had to be read: what the tokens needed was in "
            "memory already."
        )
    useful = naive.useful_bytes_per_token / last.useful_bytes_per_token
    amplified = last.flash_bytes_per_token / last.useful_bytes_per_token
    faster = f"{before / after:.1f} times faster" if after < before else "no faster"
    if after > before:
        faster = f"{after / before:.1f} times slower"
    small = ""
    if layout.bundle_bytes < layout.block:
        small = (
            f" This model is too small to gain much: a bundle has {layout.bundle_bytes} bytes, "
            f"{layout.bundle_bytes / layout.block:.3g} of a block, so {amplified:.1f} bytes are read for a "
            f"useful one, in {last.reads_per_token:,.0f} small reads."
        )
    how = "measured" if measured else "simulated"
    return (
        f"{hybrid}{small} A token needs {useful:.0f} times fewer useful bytes than naively, and its I/O is "
        f"{faster} ({before:.2f} → {after:.2f} ms {how})."
    )


def _scaled_sentence(scaled: Sequence[Method]) -> str:
    """Why these figures are not the paper's, from their own shares of the FFN."""
    predicted, new = (method.useful_bytes_per_token / FFN_BYTES for method in (scaled[2], scaled[4]))
    return (
        f"Here {predicted:.1%} of the FFN is predicted for a token, and {new:.1%} must be read with the "
        "window; the paper's model on its M1 Max has about 10 % and 2.4 %."
    )
