"""Fits and judges the predictors of a model on disk: the two functions behind `flashref train`."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from flashref import __version__
from flashref.models.checkpoint import Checkpoint, open_checkpoint, shown_activation, with_activation
from flashref.models.origin import Origin, Source
from flashref.models.predictors import FILE_NAME, load_predictors, save_predictors
from flashref.storage.files import require_new_file
from flashref.storage.image import fingerprint
from flashref.storage.progress import Progress, unseen
from flashref.training import judging
from flashref.training.evaluation import Evaluation, Sweep, evaluate
from flashref.training.layers import require_sparse
from flashref.training.partial_dir import open_partial_dir, remove_partial_dir
from flashref.training.plan import FitPlan, complete_plan
from flashref.training.texts import (
    TextParts,
    Tokens,
    chunk_length,
    cut_parts,
    open_text,
    some_chunks,
    split_ranges,
    unseen_chunks,
)
from flashref.types import DomainError, MissingExtra, Predictor

# The bytes that recording takes for each token and each unit of the model's width: in float32 the hidden
# states before a layer, those after it, and what the layer's FFN received.
HIDDEN_STATES = 12
MEMORY = 1 << 31  # the most bytes that recording takes, unless a number of tokens is given
DEFAULT_PLAN = FitPlan()

Activation = tuple[str, float]  # the name of an activation, and its tau, which is 0 for all but FATReLU
PathLike = str | os.PathLike[str]


def fit(
    model_dir: PathLike,
    text: PathLike,
    out: PathLike | None = None,
    *,
    plan: FitPlan = DEFAULT_PLAN,
    activation: Activation | None = None,
    sweep: Sequence[float] = (),
    progress: Progress = unseen,
    announce: Callable[[str], None] = lambda what: None,
) -> Evaluation:
    """Fit a predictor for each layer of a model, judge the predictors, and write them to a file.

    The predictors are fitted on the first eight tenths of the text, ranks and thresholds are chosen on the
    ninth tenth, and the predictors are judged on the last. Finished layers are kept in a folder beside the
    file, so that the same call continues after an interrupt. The file records the text's SHA-256 and the
    model's fingerprint.

    Args:
        model_dir: the folder of a Hugging Face checkpoint.
        text: a text file in UTF-8.
        out: the file to write, which must not exist; None stands for `predictors.safetensors` in model_dir.
        plan: what to fit.
        activation: the activation to fit to, instead of the model's own.
        sweep: logits; the result also says what each of them would give as the threshold of all layers.
        progress: called with what is being done, how much of it is done, and how much there is.
        announce: called with a sentence that says how much memory is needed.

    Returns:
        The figures on the last tenth; `print` shows them as tables.

    Raises:
        DomainError: the model, the text and the plan do not suit each other.
        MissingExtra: the extra `train` is not installed.
        ImageError: a file cannot be read or written, or another process is fitting to the same file.

    Paper §3.1, appendix B; decisions 4 to 7 and 22.
    """
    if importlib.util.find_spec("optax") is None:
        raise MissingExtra("fitting needs optax", "train")
    from flashref.training.fitting import fit_predictors, with_statistics  # they need optax

    checkpoint = with_activation(open_checkpoint(model_dir), activation)
    path = Path(out) if out is not None else checkpoint.directory / FILE_NAME
    require_new_file(path)
    require_sparse(checkpoint)
    plan = complete_plan(checkpoint, plan)
    config, length = checkpoint.config, chunk_length(checkpoint)
    ids, sha256 = open_text(Path(text), checkpoint)
    ranges = split_ranges(len(ids), length)
    parts = _some_parts(cut_parts(ids, ranges, length), _tenth(checkpoint, plan.tokens), plan.tokens)
    recorded = parts.fit.size + parts.choose.size
    states = HIDDEN_STATES * config.width * recorded / 1e6
    announce(
        f"recording {recorded:,} tokens; their hidden states take {states:,.1f} MB of memory, in addition to "
        "one layer"
    )
    identity = fingerprint(checkpoint.tensors, checkpoint.config_text, progress)
    made_of = {
        "version of flashref": __version__,
        "model": identity,
        "text": sha256,
        "--activation": shown_activation(config.activation, config.tau),
        "--tokens": sum(part.size for part in parts),
        **_options_of(plan),
    }
    with open_partial_dir(path, made_of) as partial_dir:
        try:
            outcome = fit_predictors(checkpoint, parts, plan, partial_dir, progress)
            judgement = judging.judge_predictors(
                checkpoint, outcome.predictors, parts.judge, plan.window, plan.windows, progress
            )
            swept = _swept(checkpoint, outcome.predictors, parts.choose, plan.window, sweep, progress)
        except DomainError:  # the same call would fail in the same way again
            remove_partial_dir(partial_dir)
            raise
        sources = (Source(sha256, part) for part in ranges)
        origin = Origin(identity, config.activation, config.tau, *sources)
        predictors = with_statistics(outcome, judgement, config.neurons, origin)
        save_predictors(path, predictors)
        remove_partial_dir(partial_dir)
    found = evaluate(checkpoint, path, predictors, judgement, f"the last tenth of {text}", outcome.steps)
    return found if swept is None else found._replace(sweep=Sweep(f"the ninth tenth of {text}", swept))


def judge(
    model_dir: PathLike,
    text: PathLike,
    predictors: PathLike | None = None,
    *,
    window: int = DEFAULT_PLAN.window,
    tokens: int | None = None,
    activation: Activation | None = None,
    sweep: Sequence[float] = (),
    progress: Progress = unseen,
) -> Evaluation:
    """Judge the predictors of a model on a text.

    In the text that the predictors were fitted on, only the part that was kept for judging is used.

    Args:
        model_dir: the folder of a Hugging Face checkpoint.
        text: a text file in UTF-8.
        predictors: the predictors' file; None stands for `predictors.safetensors` in model_dir.
        window: the window, in tokens, whose residency and perplexity are reported.
        tokens: ten times the most tokens that are judged on; None takes as many as `fit` would.
        activation: the model's activation; None stands for the one that the predictors were fitted to.
        sweep, progress: as for `fit`.

    Returns:
        The figures; `print` shows them as tables.

    Raises:
        DomainError: the model, the predictors and the text do not suit each other.
        ImageError: a file cannot be read.

    Paper §3.1, Fig. 9; decision 22.
    """
    checkpoint = open_checkpoint(model_dir)
    path = Path(predictors) if predictors is not None else checkpoint.directory / FILE_NAME
    config = checkpoint.config
    identity = fingerprint(checkpoint.tensors, checkpoint.config_text, progress)
    loaded = load_predictors(path, config.layers, config.neurons, config.width, identity)
    origin = loaded.origin
    asked = activation or (origin and (origin.activation, origin.tau))
    if origin and asked != (origin.activation, origin.tau):
        raise DomainError(
            f"{path}: these predictors were fitted to the activation "
            f"{shown_activation(origin.activation, origin.tau)}; leave --activation out"
        )
    checkpoint = with_activation(checkpoint, asked)
    require_sparse(checkpoint)
    ids, sha256 = open_text(Path(text), checkpoint)
    chunks, what = unseen_chunks(ids, sha256, origin, chunk_length(checkpoint))
    chunks = some_chunks(chunks, _tenth(checkpoint, tokens), 0)
    windows = FitPlan(window=window).windows
    judgement = judging.judge_predictors(checkpoint, loaded.layers, chunks, window, windows, progress)
    swept = _swept(checkpoint, loaded.layers, chunks, window, sweep, progress)
    found = evaluate(checkpoint, path, loaded, judgement, what.format(text))
    same = "the same text (do not choose a threshold by this table)"
    return found if swept is None else found._replace(sweep=Sweep(same, swept))


def _tenth(checkpoint: Checkpoint, tokens: int | None) -> int:
    """The number of chunks in a tenth of this many tokens; None stands for as many as memory allows."""
    most = tokens or MEMORY // (HIDDEN_STATES * checkpoint.config.width)
    return most // (10 * chunk_length(checkpoint))


def _some_parts(parts: TextParts, tenth: int, tokens: int | None) -> TextParts:
    """Draw chunks of each part, a tenth for choosing and judging each; DomainError if a tenth has none."""
    if not tenth:
        length = parts.fit.shape[1]
        raise DomainError(
            f"--tokens {tokens} is too small; fitting takes ten chunks of {length} tokens, so give at least "
            f"--tokens {10 * length}"
        )
    sizes = (8 * tenth, tenth, tenth)
    return TextParts(*(some_chunks(part, size, 0) for part, size in zip(parts, sizes, strict=True)))


def _options_of(plan: FitPlan) -> dict[str, object]:
    """The options of `flashref train` that the finished parts depend on, with their values."""
    others = [[fit.batch, fit.rate, fit.every, fit.patience] for fit in (plan.search, plan.fit)]
    options: dict[str, object] = {
        "--steps": plan.fit.steps,
        "--seed": plan.fit.seed,
        "batch, rate or patience": [plan.search.steps, *others],
    }
    if plan.ranks is not None:
        return options | {"--ranks": ",".join(map(str, plan.ranks))}
    return options | {
        "--share": plan.share,
        "--false-negatives": plan.false_negatives,
        "--window": plan.windows,
    }


def _swept(
    checkpoint: Checkpoint,
    predictors: Sequence[Predictor | None],
    chunks: Tokens,
    window: int,
    thresholds: Sequence[float],
    progress: Progress,
) -> tuple[judging.SweepRow, ...] | None:
    """What each threshold would give as the threshold of all layers, or None if there is no threshold."""
    if not thresholds:
        return None
    return tuple(judging.sweep_thresholds(checkpoint, predictors, chunks, window, thresholds, progress))
