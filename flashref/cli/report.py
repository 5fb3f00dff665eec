"""What `flashref run` shows: the text, what was proven, and the tables."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flashref.simulate.methods import Method
from flashref.simulate.scaled import FFN_BYTES, PAPER_IO_MS
from flashref.transformer.budget import Budget
from flashref.transformer.proof import Proof
from flashref.transformer.session import Advance
from flashref.types import Layout

LABELS = {
    "naive": "naive",
    "hybrid": "hybrid",
    "predictor": "+ predictor",
    "windowing": "+ windowing",
    "bundling": "+ bundling",
}


class Result(NamedTuple):
    """What `flashref run --json` prints, in this order."""

    model: str
    prompt: str | None  # None: the vocabulary is not bytes
    text: str | None
    token_ids: list[int]
    tokens: int
    semantics: str
    window: int
    memory_fraction: float
    device: str
    reader: str
    direct: bool | None  # whether reads went past the page cache; None: nothing was really read
    verified: bool
    same_as_dense: bool
    overflows: int  # times that a layer's rows did not hold the whole window
    predictor: dict[str, float]
    perplexity: dict[str, float | None]
    methods: list[dict[str, Any]]
    scaled: list[dict[str, Any]]


class Output(Console):
    """Rich's own, but a reader that has gone away is the caller's affair, as with `print`."""

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError."""
        raise BrokenPipeError


def print_whole(table: Table) -> None:
    """A table in its full width, on stdout: a narrow terminal, or a pipe, does not cost it a column."""
    needed = Output(width=10**4).measure(table).maximum
    width = max(Output().width, needed)
    Output(width=width, highlight=False, emoji=False).print(table, crop=False, soft_wrap=True)


@contextmanager
def progress(quiet: bool) -> Iterator[Advance]:
    """Progress bars on stderr, on a terminal only; gives the function that moves them."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def show(
    result: Result,
    methods: Sequence[Method],
    scaled: Sequence[Method],
    layout: Layout,
    budget: Budget,
    proof: Proof,
) -> None:
    """Text, proof and tables on stdout."""
    out = Output(highlight=False, emoji=False)
    out.print(_text(result), soft_wrap=True)
    out.print()
    for line in _proof_lines(result, budget, proof):
        out.print(line)
    out.print()
    measured = methods[0].measured_io_ms_per_token is not None
    title = f"{result.model} on {result.device}: bytes, reads and I/O time per new token"
    out.print(Text(title, "bold"), soft_wrap=True)
    out.print(_table(methods, measured, paper=False))
    out.print(_size_sentence(methods, layout))
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


def _proof_lines(result: Result, budget: Budget, proof: Proof) -> Iterator[str]:
    if proof.failure is None:
        yield (
            f"[green]verified[/green]: in {proof.steps} steps of a layer, the bytes read, the resident set "
            "and the output to the last bit are what the definition gives from weights in memory"
        )
    else:
        yield f"[red]NOT verified[/red]: {escape(proof.failure)}"
    dense = (
        "the text is the dense model's" if result.same_as_dense else "the text differs from the dense model's"
    )
    # A predictor that missed nothing gives the dense FFN, whatever else is in memory.
    depends = result.semantics == "resident" and result.predictor["false_negative_rate"] > 0
    yield f"{dense}, with {result.semantics} semantics{'; it may depend on the memory given' * depends}"
    yield (
        f"memory: {result.memory_fraction:g} of the model, {size(budget.dram_bytes)} used (biases and the "
        f"KV cache not counted), a window of {result.window}, rows per layer "
        f"{', '.join(map(str, budget.capacities))}"
    )
    if result.overflows:
        yield (
            f"in {result.overflows} of {(len(result.token_ids) - 1) * len(budget.capacities)} steps the rows "
            f"did not hold a whole window of {result.window}: tokens left early, or neurons were read and "
            "not kept; every predicted neuron was summed all the same, for more reads"
        )
    rates = result.predictor
    yield (
        f"predictor, on this text: {rates['false_negative_rate']:.1%} of the active neurons missed, "
        f"{rates['false_positive_rate']:.1%} of the inactive ones read for nothing"
    )
    dense_perplexity, flash_perplexity = result.perplexity["dense"], result.perplexity["flash"]
    if dense_perplexity is not None and flash_perplexity is not None:
        yield (
            f"perplexity per byte on held-out text: {dense_perplexity:.3f} dense, {flash_perplexity:.3f} "
            f"from flash ({flash_perplexity / dense_perplexity - 1:+.2%})"
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


def size(amount: float) -> str:
    """Bytes in units of 1000, three digits: GB = 10^9."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= size:
            return f"{_three_digits(amount / size)} {unit}"
    return f"{amount:.0f} B"


def milliseconds(amount: float) -> str:
    """Milliseconds, three digits."""
    return f"{_three_digits(amount)} ms"


def _three_digits(amount: float) -> str:
    return f"{amount:,.{0 if amount >= 100 else 1 if amount >= 10 else 2}f}"
