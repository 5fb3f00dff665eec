"""What `flashref train` shows: errors and densities a layer (the paper's Fig. 9), and four perplexities."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flashref.cli import report
from flashref.cli.train_result import Result


def show(result: Result) -> None:
    """Tables on stdout."""
    out = report.Output(highlight=False, emoji=False)
    out.print(f"judged on {escape(result.judged_on)}: {result.tokens:,} tokens", soft_wrap=True)
    activation = result.activation + f" (tau {result.tau:g})" * (result.activation == "fatrelu")
    out.print(
        f"{escape(result.predictors)}: {report.size(result.predictor_bytes)}, {result.share:.2%} of the "
        f"model, for {activation}",
        soft_wrap=True,
    )
    out.print()
    report.print_whole(_layers_table(result))
    report.print_whole(_perplexity_table(result))
    if result.sweep is not None:
        out.print(f"one threshold for all layers, on {escape(result.swept_on or '')}", soft_wrap=True)
        report.print_whole(_sweep_table(result.sweep))


def _layers_table(result: Result) -> Table:
    words = ("layer", "rank", "size", "threshold", "active", "predicted", "missed", "for nothing")
    table = _table((*words, f"resident, {result.window}", "at most"))
    for name, row in [*enumerate(result.layers), ("all", result.total)]:
        resident = row["mean_resident"], row["largest_resident"]
        table.add_row(
            str(name),
            "dense" if row["rank"] is None else str(row["rank"]),
            report.size(row["bytes"]) if row["bytes"] else "",
            "" if row["threshold"] is None else f"{row['threshold']:.2f}",
            f"{row['active']:.2%}",
            *(
                (f"{row[key]:.2%}" if row["rank"] is not None else "")
                for key in ("predicted", "false_negative_rate", "false_positive_rate")
            ),
            *(f"{of[result.window - 1]:.1%}" if of else "100.0%" for of in resident),
            end_section=name == len(result.layers) - 1,
        )
    table.caption = (
        "threshold: of the logit; missed: false negatives, of the active; for nothing: false positives, of\n"
        f"the inactive; resident: the mean with a window of {result.window} tokens; at most: the most of any"
    )
    return table


def _perplexity_table(result: Result) -> Table:
    table = _table(("summed", "perplexity", "against dense"))
    dense = result.perplexity["dense"]
    for name, value in result.perplexity.items():
        change = f"{value / dense - 1:+.2%}" if value is not None and dense is not None else ""
        table.add_row(name, "∞" if value is None else f"{value:.4f}", "" if name == "dense" else change)
    return table


def _sweep_table(rows: Sequence[dict[str, float]]) -> Table:
    table = _table(("probability", "threshold", "predicted", "missed", "for nothing", "resident"))
    for row in rows:
        shares = ("predicted", "false_negative_rate", "false_positive_rate", "mean_resident")
        table.add_row(
            f"{row['probability']:.2f}", f"{row['threshold']:.2f}", *(f"{row[name]:.2%}" for name in shares)
        )
    return table


def _table(headings: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table
