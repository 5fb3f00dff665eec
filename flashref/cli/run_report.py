"""What `flashref run` shows: the text, what was proven, memory, quality, and the tables."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flashref.bundle import Layout
from flashref.cli.report import LABELS, Output, milliseconds, size
from flashref.cli.result import Result
from flashref.ffn import SPARSE_ACTIVATIONS
from flashref.models.proof import Proof
from flashref.simulate.methods import Method
from flashref.simulate.scaled import FFN_BYTES, PAPER_IO_MS


def show(
    result: Result,
    methods: Sequence[Method],
    scaled: Sequence[Method],
    layout: Layout,
    proof: Proof,
) -> None:
    """Text, proof and tables on stdout."""
    out = Output(highlight=False, emoji=False)
    out.print(_text(result), soft_wrap=True)
    out.print()
    for line in (*_proof_lines(result, proof), *_memory_lines(result), *_quality_lines(result)):
        out.print(line)
    out.print()
    measured = methods[0].measured_io_ms_per_token is not None
    title = f"{result.model} on {result.device}: bytes, reads and I/O time per new token"
    out.print(Text(title, "bold"), soft_wrap=True)
    out.print(_table(methods, measured, paper=False))
    out.print(_size_sentence(methods, layout))
    if not scaled:
        return
    out.print()
    title = f"simulated: the same trace at OPT 6.7B's shape in fp16, half in memory, on {result.device}"
    out.print(Text(title, "bold"), soft_wrap=True)
    out.print(_table(scaled, measured=False, paper=True))
    out.print(_scaled_sentence(scaled))


def _text(result: Result) -> Text:
    """The prompt, in bold, and what was written; token ids where they are not bytes."""
    prompt, written = result.prompt, result.text
    if prompt is None or written is None:
        new = result.token_ids[-result.tokens :]
        prompt = ",".join(map(str, result.token_ids[: -result.tokens])) + " → "
        written = ",".join(map(str, new))
    return Text.assemble((prompt, "bold"), written)


def _proof_lines(result: Result, proof: Proof) -> Iterator[str]:
    if proof.failure is not None:
        yield f"[red]NOT verified[/red]: {escape(proof.failure)}"
    elif result.verified is None:
        yield "not verified: --no-proof; every bundle that was read matched its checksum"
    else:
        yield (
            f"[green]verified[/green]: in {proof.steps} steps of a layer, the bytes read, the resident set "
            "and the output to the last bit are what the definition gives from weights in memory"
        )
    if result.same_as_dense is not None:
        model = (
            f"dense model's of {result.activation.shown}" if result.activation.changed else "dense model's"
        )
        dense = f"the text is the {model}" if result.same_as_dense else f"the text differs from the {model}"
        # A predictor that missed nothing gives the dense FFN, whatever else is in memory.
        missed = (result.predictor["false_negative_rate"] or 0) > 0
        depends = result.semantics == "resident" and missed
        yield f"{dense}, with {result.semantics} semantics{'; it may depend on the memory given' * depends}"
    if result.activation.name not in SPARSE_ACTIVATIONS:
        yield (
            f"nothing is sparse: with {result.activation.name} every neuron is active; "
            "--activation fatrelu:T runs the model with another"
        )


def _memory_lines(result: Result) -> Iterator[str]:
    memory = result.memory
    rows = ", ".join("all" if rows is None else str(rows) for rows in result.rows)
    share = f"{result.memory_fraction:.4g} of the model"
    if result.memory_fraction > 1:
        share = f"{size(memory.budget)}, more than the model"
    yield (
        f"memory: {share}, {size(memory.counted)} used (biases and the "
        f"KV cache not counted), a window of {result.window}, rows per layer {rows}"
    )
    if result.overflows:
        sparse = sum(rows is not None for rows in result.rows)
        yield (
            f"in {result.overflows} of {(len(result.token_ids) - 1) * sparse} steps the rows "
            f"did not hold a whole window of {result.window}: tokens left early, or neurons were read and "
            "not kept; every predicted neuron was summed all the same, for more reads"
        )
    peak = f"peak of memory: {size(memory.peak)} above the {size(memory.before)} of Python before the model"
    beside = (
        f"a budget of {size(memory.budget)}, and beside it {size(memory.kv_cache)} of KV cache, "
        f"{size(memory.biases)} of biases, {size(memory.id_tables)} of id tables, "
        f"{size(memory.workspace)} of workspace"
    )
    if memory.held is None:
        yield f"{peak}, with the weights that the proof has in memory; --no-proof holds it to the budget"
    elif memory.held:
        yield f"{peak}, [green]within[/green] {size(memory.allowed)}: {beside}"
    else:
        yield f"{peak}, [red]MORE than[/red] {size(memory.allowed)}: {beside}"


def _quality_lines(result: Result) -> Iterator[str]:
    missed, extra = result.predictor["false_negative_rate"], result.predictor["false_positive_rate"]
    if missed is not None and extra is not None:
        yield (
            f"predictor, on this text: {missed:.1%} of the active neurons missed, "
            f"{extra:.1%} of the inactive ones read for nothing"
        )
    dense, flash, unchanged = (result.perplexity[which] for which in ("dense", "flash", "unchanged"))
    if flash is None:
        return
    if dense is None:
        yield f"perplexity per token on held-out text: {flash:.3f} from flash"
        return
    before = ""
    if unchanged is not None:
        own = result.activation._replace(name=result.activation.own, tau=result.activation.own_tau).shown
        before = f"{unchanged:.3f} with {own} as it is, "
    after = f" with {result.activation.shown} ({dense / unchanged - 1:+.2%})" if unchanged is not None else ""
    yield (
        f"perplexity per token on held-out text: {before}{dense:.3f} dense{after}, {flash:.3f} "
        f"from flash ({flash / dense - 1:+.2%})"
    )


def _table(methods: Sequence[Method], measured: bool, paper: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    table.add_column("method", no_wrap=True)
    headings = ["useful", "read", "reads", "in DRAM", "moved", "simulated"]
    headings += ["measured"] * measured + ["paper"] * paper
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for method, paper_ms in zip(methods, PAPER_IO_MS, strict=True):
        cells = [
            LABELS[method.name],
            size(method.useful_bytes_per_token),
            size(method.flash_bytes_per_token),
            f"{method.reads_per_token:,.0f}",
            size(method.dram_bytes),
            size(method.dram_moved_bytes_per_token),
            milliseconds(method.simulated_io_ms_per_token),
        ]
        if method.measured_io_ms_per_token is not None:
            cells.append(milliseconds(method.measured_io_ms_per_token))
        if paper:
            cells.append(milliseconds(paper_ms))
        table.add_row(*cells)
    return table


def _size_sentence(methods: Sequence[Method], layout: Layout) -> str:
    """What the table means for bundles of this size, from its own figures."""
    naive, last = methods[0], methods[-1]
    measured = last.measured_io_ms_per_token is not None and naive.measured_io_ms_per_token is not None
    times = [
        (m.measured_io_ms_per_token if measured else m.simulated_io_ms_per_token) or 0.0
        for m in (naive, last)
    ]
    if last.useful_bytes_per_token == 0:
        return "With everything, nothing had to be read: what the tokens needed was in memory already."
    useful = naive.useful_bytes_per_token / last.useful_bytes_per_token
    amplified = last.flash_bytes_per_token / last.useful_bytes_per_token
    faster = f"{times[0] / times[1]:.1f} times faster" if times[1] < times[0] else "no faster"
    if times[1] > times[0]:
        faster = f"{times[1] / times[0]:.1f} times slower"
    why = ""
    if layout.bundle_bytes < layout.block:
        why = (
            f": a bundle has {layout.bundle_bytes} bytes, {layout.bundle_bytes / layout.block:.3g} of a "
            f"block, so {amplified:.1f} bytes are read for a useful one, "
            f"in {last.reads_per_token:,.0f} small reads"
        )
    how = "measured" if measured else "simulated"
    return (
        f"A token needs {useful:.0f} times fewer useful bytes than naively, and its I/O is {faster} "
        f"({times[0]:.2f} → {times[1]:.2f} ms {how}){why}."
    )


def _scaled_sentence(scaled: Sequence[Method]) -> str:
    """Why these figures are not the paper's, from their own shares of the FFN."""
    ffn = FFN_BYTES
    predicted, new = (method.useful_bytes_per_token / ffn for method in (scaled[2], scaled[4]))
    return (
        f"Here {predicted:.1%} of the FFN is predicted for a token, and {new:.1%} must be read with the "
        "window; the paper's model on its M1 Max has about 10 % and 2.4 %."
    )
