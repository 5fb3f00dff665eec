"""`flashref train`: fits a predictor for each layer, and judges it on text that it has not seen."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashref.cli import report
from flashref.cli.options import HELD_OUT, activation, at_least, fraction, ids
from flashref.cli.plots import check_plot, save_plot
from flashref.models.budget import LARGEST_WINDOW
from flashref.models.checkpoint import TINY
from flashref.models.predictors import FILE_NAME
from flashref.predictor import logit_threshold
from flashref.simulate.look import COLOURS, MARKERS, STYLE, new_plot
from flashref.storage.progress import Progress
from flashref.types import DomainError

if TYPE_CHECKING:  # it needs JAX
    from flashref.training import Evaluation, Plan

FITTING = ("out", "ranks", "share", "false_negatives", "threshold", "steps", "seed")  # not with --judge
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9)  # probabilities of --sweep
WIDTH, HEIGHT = 900, 380  # points of the figure


def add_parser(commands: Any) -> None:
    """`train` among the commands."""
    parser = commands.add_parser(
        "train",
        help="fit low-rank predictors to a model, and judge them",
        description="Fit a predictor for each layer on the first eight tenths of a text, choose ranks and "
        "thresholds on the ninth, and judge on the last. After an interrupt the same command goes on with "
        "the next layer. With --judge, judge predictors that are there.",
    )
    _add_inputs(parser)
    _add_fitting(parser)
    _add_results(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Fit, or judge what is there; print, and then draw."""
    _check(options)
    check_plot(options.plot)
    with report.progress(options.quiet) as progress:
        found = _judge(options, progress) if options.judge else _fit(options, progress)
    print(json.dumps(found.as_json(), indent=2, allow_nan=False) if options.json else found)
    if options.plot is not None:
        _plot(options.plot, found)
    return 0


def _fit(options: argparse.Namespace, progress: Progress) -> "Evaluation":
    from flashref import training  # JAX: only when it is needed
    from flashref.training.partial_dir import partial_dir_of

    try:
        return training.fit(
            options.model,
            options.text,
            options.out,
            plan=_plan(options),
            activation=options.activation,
            sweep=_thresholds(options),
            progress=progress,
            announce=lambda what: _say(options, what),
        )
    except KeyboardInterrupt:
        folder = partial_dir_of(options.out or options.model / FILE_NAME)
        if folder.exists():
            _say(options, f"what is done is kept in {folder}; the same command goes on from there")
        raise


def _judge(options: argparse.Namespace, progress: Progress) -> "Evaluation":
    model = options.model or TINY
    text = options.text or model / HELD_OUT
    if options.text is None and model.is_dir() and not text.is_file():
        raise DomainError(f"{model}: has no {HELD_OUT} to judge on; give a text with --text FILE")

    from flashref import training  # JAX: only when it is needed

    return training.judge(
        model,
        text,
        options.predictors,
        window=options.window,
        tokens=options.tokens,
        activation=options.activation,
        sweep=_thresholds(options),
        progress=progress,
    )


def _plan(options: argparse.Namespace) -> "Plan":
    """What was asked for, and the defaults for the rest."""
    from flashref.training import Plan

    default, seed = Plan(), options.seed or 0
    return Plan(
        options.ranks,
        options.share or default.share,
        options.false_negatives or default.false_negatives,
        options.threshold,
        options.window,
        default.search._replace(seed=seed),
        default.fit._replace(seed=seed, steps=options.steps or default.fit.steps),
        options.tokens,
    )


def _thresholds(options: argparse.Namespace) -> list[float]:
    return [logit_threshold(probability) for probability in GRID] if options.sweep else []


def _plot(path: Path, found: "Evaluation") -> None:
    """Draw the figures into a new file that appears whole or not at all."""
    import matplotlib  # slow to import

    from flashref.training import draw

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = new_plot(WIDTH, HEIGHT)
        draw(figure, found, COLOURS, MARKERS)
        save_plot(path, figure)


def _say(options: argparse.Namespace, message: str) -> None:
    if not options.quiet:
        print(f"flashref train: {message}", file=sys.stderr)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        nargs="?",
        type=Path,
        help="the Hugging Face checkpoint (with --judge the default is the tiny model that flashref ships)",
    )
    add(
        "--text",
        metavar="FILE",
        type=Path,
        help="the text, in UTF-8 (with --judge the default is MODEL/held_out.txt)",
    )
    add(
        "--tokens",
        metavar="N",
        type=at_least(1),
        help="use at most N tokens of the text, and with --judge a tenth of N; each takes 12 bytes of memory "
        "for every unit of the model's width (default: as many as take 2 GiB)",
    )
    add(
        "--activation",
        metavar="A",
        type=activation,
        help="run the model with relu or fatrelu:T instead of its own activation",
    )
    add("--judge", action="store_true", help="fit nothing, and judge the predictors that are there")
    add(
        "--predictors",
        metavar="FILE",
        type=Path,
        help=f"the predictors that --judge judges (default: MODEL/{FILE_NAME})",
    )


def _add_fitting(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--out",
        metavar="FILE",
        type=Path,
        help=f"write the predictors to FILE, which must not exist (default: MODEL/{FILE_NAME})",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--ranks",
        metavar="R",
        type=_ranks,
        help="the predictors' rank: one number for all layers, or one for each, such as 16,32,0; with 0 the "
        "layer gets no predictor and stays in memory",
    )
    sizes.add_argument(
        "--share",
        metavar="S",
        type=fraction,
        help="give the predictors this share of the model's bytes, and each layer the rank that helps most "
        "(default: 0.06)",
    )
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument(
        "--false-negatives",
        metavar="S",
        type=fraction,
        help="choose each layer's threshold so that at most this share of the active neurons is missed "
        "(default: 0.048)",
    )
    limits.add_argument(
        "--threshold",
        metavar="P",
        type=_threshold,
        help="use this probability as the threshold of every layer; the paper's is 0.5",
    )
    add(
        "--steps",
        metavar="N",
        type=at_least(1),
        help="end the fit of a layer after at most N batches (default: 3000)",
    )
    add("--seed", metavar="S", type=at_least(0), help="draw the batches from this seed (default: 0)")


def _add_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--window",
        metavar="K",
        type=at_least(1),
        default=LARGEST_WINDOW,
        help=f"report what a window of K tokens keeps in memory (default: {LARGEST_WINDOW})",
    )
    add("--sweep", action="store_true", help="also show what other thresholds would give")
    add(
        "--plot",
        metavar="FILE",
        type=Path,
        help="draw layers and windows into FILE (.png, .svg or .pdf), which must not exist",
    )
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--quiet", action="store_true", help="show no progress on stderr")


def _check(options: argparse.Namespace) -> None:
    """DomainError for options that do not go together."""
    if options.judge:
        given = next((name for name in FITTING if getattr(options, name) is not None), None)
        if given:
            raise DomainError(
                f"--{given.replace('_', '-')} is for fitting; leave it out, or leave --judge out"
            )
        return
    if options.predictors is not None:
        raise DomainError(
            "--predictors names what --judge judges; say --judge too, or where to write with --out"
        )
    for name, value in (("MODEL", options.model), ("--text FILE", options.text)):
        if value is None:
            raise DomainError(f"to fit takes {name}; or judge what is there with --judge")
    if options.plot is not None and options.plot == (options.out or options.model / FILE_NAME):
        raise DomainError(f"--plot {options.plot}: is where the predictors go; choose another name")


def _ranks(word: str) -> tuple[int, ...]:
    ranks = tuple(ids(word))
    if min(ranks) < 0:
        raise argparse.ArgumentTypeError(f"ranks must be at least 0, not {min(ranks)}")
    return ranks


def _threshold(word: str) -> float:
    """The logit of a probability."""
    try:
        return logit_threshold(float(word))
    except ValueError:  # a DomainError is one
        raise argparse.ArgumentTypeError(f"{word!r} is no probability between 0 and 1, such as 0.5") from None
