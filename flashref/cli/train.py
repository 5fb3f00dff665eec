"""`flashref train`: fits a predictor a layer to a model, and judges them on text that they have not seen."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flashref import __version__
from flashref.cli import options as words
from flashref.cli import report, train_report
from flashref.cli.plots import check_plot
from flashref.cli.train_inputs import identify, open_text
from flashref.cli.train_options import add_train_options, check_words
from flashref.cli.train_plot import plot
from flashref.cli.train_result import Result, result
from flashref.models.budget import LARGEST_WINDOW
from flashref.models.checkpoint import Checkpoint, open_checkpoint, with_activation
from flashref.models.origin import Origin, Source
from flashref.models.predictors import FILE_NAME, load_predictors, save_predictors
from flashref.predictor import logit_threshold
from flashref.storage.progress import Progress
from flashref.types import DomainError, MissingExtra, Predictor

if TYPE_CHECKING:  # it needs JAX
    from flashref.training.plan import Plan

HIDDEN_STATES = 12  # bytes a token and unit of the width: before a layer, after it, and what its FFN received
MEMORY = 1 << 31  # of all of them, unless --tokens says otherwise
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9)  # probabilities of --sweep


def add_parser(commands: Any) -> None:
    """`train` among the commands."""
    parser = commands.add_parser(
        "train",
        help="fit low-rank predictors to a model, and judge them",
        description="Fits a predictor a layer on eight tenths of a text, chooses ranks and thresholds on the "
        "ninth, and judges on the last. Interrupted, the same command goes on with the next layer.",
    )
    add_train_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Fit, or judge what is there; and report."""
    check_words(options)
    check_plot(options.plot)
    with report.progress(options.quiet) as advance:
        found = _judge(options, advance) if options.judge else _train(options, advance)
    if options.plot is not None:
        plot(options.plot, found)
    if options.json:
        print(json.dumps(found._asdict(), indent=2, allow_nan=False))
    else:
        train_report.show(found)
    return 0


def _train(options: argparse.Namespace, advance: Progress) -> Result:
    if importlib.util.find_spec("optax") is None:
        raise MissingExtra("fitting needs optax", "train")
    checkpoint = with_activation(open_checkpoint(options.model), options.activation)
    path = options.out or options.model / FILE_NAME
    words.check_new_file("--out", path)
    text = open_text(options.text, checkpoint)

    from flashref.training import judging, layers, plan, session, texts, work  # JAX: only when it is needed

    layers.require_sparse(checkpoint)
    config = checkpoint.config
    wanted = _plan(options, config.layers)
    plan.check_plan(checkpoint, wanted)
    length = min(config.context, texts.LONGEST)
    ranges = texts.split_ranges(len(text.ids), length)
    parts = texts.cut_parts(text.ids, ranges, length)
    most = _tenth(options, config.width, length)
    if not most:
        raise DomainError(
            f"--tokens {options.tokens} are too few; fitting takes ten chunks of {length}, so {10 * length}"
        )
    parts = texts.Parts(
        texts.some_chunks(parts.fit, 8 * most, 0),
        texts.some_chunks(parts.choose, most, 0),
        texts.some_chunks(parts.judge, most, 0),
    )
    recorded = parts.fit.size + parts.choose.size
    states = report.size(HIDDEN_STATES * config.width * recorded)
    _say(options, f"recording {recorded:,} tokens; their hidden states take {states}, beside one layer")
    identity = identify(checkpoint, advance)
    made_of = {
        "flashref": __version__,
        "model": identity,
        "activation": [config.activation, config.tau],
        "text": text.sha256,
        "tokens": [part.size for part in parts],
        "ranks": wanted.ranks or [wanted.share, wanted.false_negatives, wanted.windows],
        "fit": list(wanted.fit),
    }
    begun = work.open_work(path, made_of)
    try:
        outcome = session.fit_predictors(checkpoint, parts, wanted, begun, advance)
        judgement = judging.judge(
            checkpoint,
            outcome.predictors,
            parts.judge,
            options.window,
            wanted.windows,
            lambda done: advance("judging", done, config.layers),
        )
        swept = _swept(options, checkpoint, outcome.predictors, parts.choose)
    except KeyboardInterrupt:
        _say(options, f"what is done is kept in {begun.folder}; the same command goes on from there")
        raise
    except DomainError:  # of the model: the same command would end there again
        work.close_work(begun)
        raise
    origin = Origin(identity, config.activation, config.tau, *(Source(text.sha256, part) for part in ranges))
    predictors = session.with_statistics(outcome, judgement, config.neurons, origin)
    save_predictors(path, predictors)
    work.close_work(begun)
    return result(
        checkpoint,
        path,
        predictors,
        judgement,
        options.window,
        outcome.steps,
        swept,
        judged_on=f"the last tenth of {options.text}",
        swept_on=f"the ninth tenth of {options.text}",
    )


def _judge(options: argparse.Namespace, advance: Progress) -> Result:
    model = options.model or words.TINY
    path, text_path = options.predictors or model / FILE_NAME, options.text or model / words.HELD_OUT
    checkpoint = open_checkpoint(model)
    if options.text is None and not text_path.is_file():
        raise DomainError(f"{model}: has no {words.HELD_OUT} to judge on; give a text with --text FILE")
    config = checkpoint.config
    identity = identify(checkpoint, advance)
    predictors = load_predictors(path, config.layers, config.neurons, config.width, identity)
    origin = predictors.origin
    asked = options.activation or (origin and (origin.activation, origin.tau))
    if origin and asked != (origin.activation, origin.tau):
        raise DomainError(
            f"{path}: was fitted to {origin.activation}, tau {origin.tau:g}; leave --activation out"
        )
    checkpoint = with_activation(checkpoint, asked)
    text = open_text(text_path, checkpoint)

    from flashref.training import judging, layers, texts  # JAX: only when it is needed

    layers.require_sparse(checkpoint)
    length = min(config.context, texts.LONGEST)
    chunks, what = texts.unseen_chunks(text.ids, text.sha256, origin, length)
    chunks = texts.some_chunks(chunks, _tenth(options, config.width, length), 0)
    windows = max(LARGEST_WINDOW, options.window)
    judgement = judging.judge(
        checkpoint,
        predictors.layers,
        chunks,
        options.window,
        windows,
        lambda done: advance("judging", done, config.layers),
    )
    swept = _swept(options, checkpoint, predictors.layers, chunks)
    return result(
        checkpoint,
        path,
        predictors,
        judgement,
        options.window,
        None,
        swept,
        judged_on=what.format(text_path),
        swept_on="the same; choose no threshold by what it is judged on",
    )


def _plan(options: argparse.Namespace, layers: int) -> "Plan":
    """What was asked for, and the defaults for the rest."""
    from flashref.training.plan import Plan

    default, seed = Plan(), options.seed or 0
    return Plan(
        options.ranks and (options.ranks * layers if len(options.ranks) == 1 else options.ranks),
        options.share or default.share,
        options.false_negatives or default.false_negatives,
        options.threshold,
        max(LARGEST_WINDOW, options.window),
        default.search._replace(seed=seed),
        default.fit._replace(seed=seed, steps=options.steps or default.fit.steps),
    )


def _tenth(options: argparse.Namespace, width: int, length: int) -> int:
    """Chunks in a tenth of the tokens that memory, or --tokens, allows."""
    tokens: int = options.tokens or MEMORY // (HIDDEN_STATES * width)
    return tokens // (10 * length)


def _swept(
    options: argparse.Namespace,
    checkpoint: Checkpoint,
    predictors: Sequence[Predictor | None],
    chunks: npt.NDArray[np.int32],
) -> Any:
    if not options.sweep:
        return None
    from flashref.training.judging import sweep

    return sweep(checkpoint, predictors, chunks, options.window, [logit_threshold(p) for p in GRID])


def _say(options: argparse.Namespace, message: str) -> None:
    if not options.quiet:
        print(f"flashref train: {message}", file=sys.stderr)
