"""Makes the tiny model that flashref ships: an OPT of four layers, and its predictors.

    python tests/tools/train_tiny.py [--text FILE.deb | --text FILE.txt] [--out DIR]

Run it from a checkout with the ``train`` extra installed.  The text is the King James Bible as
Debian packages it (bible-kjv-text 4.38); without ``--text`` it is fetched by ``apt-get download``.
About 35 minutes on one quiet core, twice that on a busy one.  ``--weights FILE`` keeps a model and
fits its predictors only.  Progress goes to stderr, the results to stdout as one JSON line.

The steps: read the text; split it; train in float32; round to F16; fit a predictor per layer on
the training text; choose ranks and thresholds on the development text; judge, once, on the
held-out text; write config.json, model.safetensors, predictors.safetensors and held_out.txt.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from optax.contrib import MuonDimensionNumbers, muon
from safetensors.numpy import load_file, save_file

from flashref.models.checkpoint import Checkpoint, open_checkpoint
from flashref.models.config import parse_config
from flashref.models.families import opt
from flashref.models.family import Config, fill
from flashref.models.model import embed, last_hidden, load_model
from flashref.models.origin import Origin, Source
from flashref.models.parts import Position, apply
from flashref.models.predictors import FILE_NAME, Predictors, predictor_tensors, save_predictors
from flashref.models.whole_text import causal_attention
from flashref.storage.image import fingerprint
from flashref.training.fitting import fit_predictors, with_statistics
from flashref.training.judging import Judgement, judge_predictors, total_errors
from flashref.training.partial_dir import open_partial_dir, remove_partial_dir
from flashref.training.plan import FitPlan
from flashref.training.texts import PartRanges, Range, Tokens, cut_parts, some_chunks
from flashref.types import FFN
from flashref.xla import neuron_values, sum_neurons

PACKAGE, VERSION = "bible-kjv-text", "4.38"
SLICE = 65_536  # bytes of the development slice, and of the held-out slice

WINDOWS = 5  # residency is stored for windows of 1 to 5 tokens
FIT_CHUNKS = 3000  # chunks of the training text that predictors are fitted on

Parameters = dict[str, jax.Array]

MUON_SCALE = 0.2  # the root mean square of an update, per rate (optax: consistent_rms)


# --- the text -------------------------------------------------------------------------------------


def fetch_package(folder: Path) -> Path:
    """Download the Debian package of the text, this very version, into a folder."""
    subprocess.run(["apt-get", "download", f"{PACKAGE}={VERSION}"], cwd=folder, check=True, stdout=sys.stderr)
    return next(folder.glob(f"{PACKAGE}_*.deb"))


def unpack_text(package: Path) -> bytes:
    """The text inside the package: 68 windows of at most 64 KiB, each packed by compress(1)."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        packed = (Path(folder) / "usr/lib/bible.data").read_bytes()
    (windows,) = struct.unpack_from(">I", packed, 0x58)
    starts = struct.unpack_from(f">{windows + 1}I", packed, 0x5C)
    magic = b"\x1f\x9d\x90"  # what compress(1) writes first; the package leaves it out
    parts = []
    for start, end in itertools.pairwise(starts):
        result = subprocess.run(
            ["gzip", "-dc"], input=magic + packed[start:end], capture_output=True, check=True
        )
        parts.append(result.stdout)
    return b"".join(parts)


def read_text(path: Path | None) -> bytes:
    """The whole text: from a .deb, from a file that holds it unpacked, or, without a path, by apt."""
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            return unpack_text(fetch_package(Path(folder)))
    return unpack_text(path) if path.suffix == ".deb" else path.read_bytes()


class Split(NamedTuple):
    """The verses without their references, and which bytes are to fit on, to choose on, to judge on."""

    verses: bytes
    ranges: PartRanges


def split_text(text: bytes) -> Split:
    """Cut two slices of 64 KiB out of the middle of the narrative books; the rest is for training.

    The slice to choose on begins where 1 Samuel does, the one to judge on at the next line after it,
    training resumes at the next line after that; the two broken lines in between are not used at all.
    A line is a verse; "1Sm3:4 " in front of it is left out, so the model sees plain English.
    """
    lines = text.splitlines(keepends=True)[1:]  # the first line is the edition's title
    verses = [line.split(b" ", 1)[1] for line in lines]
    samuel = next(i for i, line in enumerate(lines) if line.startswith(b"1Sm"))
    first, joined = len(b"".join(verses[:samuel])), b"".join(verses)
    middle = joined.index(b"\n", first + SLICE - 1) + 1
    end = joined.index(b"\n", middle + SLICE - 1) + 1
    fit = ((0, first), (end, len(joined)))
    return Split(joined, PartRanges(fit, ((first, first + SLICE),), ((middle, middle + SLICE),)))


def pieces(text: bytes, ranges: tuple[Range, ...]) -> bytes:
    """These pieces of a text, one after the other."""
    return b"".join(text[first:end] for first, end in ranges)


def byte_ids(text: bytes) -> Tokens:
    """A byte a token."""
    return np.frombuffer(text, np.uint8).astype(np.int32)


# --- the model ------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What an OPT needs to know about itself."""

    layers: int = 4
    width: int = 128
    neurons: int = 1024
    heads: int = 4
    context: int = 128
    vocabulary: int = 256


def config(shape: Shape) -> dict[str, Any]:
    """config.json; no byte is special, so begin, end and padding have no id."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
        "tie_word_embeddings": True,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "word_embed_proj_dim": shape.width,
        "ffn_dim": shape.neurons,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "layerdrop": 0.0,
        "init_std": 0.02,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "use_cache": True,
        "dtype": "float16",
        "torch_dtype": "float16",
    }


def initial_parameters(key: jax.Array, shape: Shape) -> Parameters:
    """Random weights under the names of Hugging Face; a linear map's weight is (outputs, inputs)."""
    sizes: dict[str, tuple[int, int, float]] = {
        "embed_tokens": (shape.vocabulary, shape.width, 0.02),
        "embed_positions": (shape.context + 2, shape.width, 0.02),  # OPT's offset of 2
    }
    inner, outer = shape.width**-0.5, (2 * shape.layers) ** -0.5
    for layer in range(shape.layers):
        block = f"layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj"):
            sizes[f"{block}.self_attn.{name}"] = (shape.width, shape.width, inner)
        sizes[f"{block}.self_attn.out_proj"] = (shape.width, shape.width, inner * outer)
        sizes[f"{block}.fc1"] = (shape.neurons, shape.width, inner)
        sizes[f"{block}.fc2"] = (shape.width, shape.neurons, shape.neurons**-0.5 * outer)
    parameters = {}
    for each, (name, (rows, columns, scale)) in zip(
        jax.random.split(key, len(sizes)), sizes.items(), strict=True
    ):
        parameters[f"model.decoder.{name}.weight"] = scale * jax.random.normal(each, (rows, columns))
        if not name.startswith("embed"):
            parameters[f"model.decoder.{name}.bias"] = jnp.zeros(rows)
    norms = [
        f"layers.{layer}.{which}"
        for layer in range(shape.layers)
        for which in ("self_attn_layer_norm", "final_layer_norm")
    ]
    for name in [*norms, "final_layer_norm"]:
        parameters[f"model.decoder.{name}.weight"] = jnp.ones(shape.width)
        parameters[f"model.decoder.{name}.bias"] = jnp.zeros(shape.width)
    return parameters


class Forward(NamedTuple):
    """What one pass over (batch, tokens) gives; the list has one array per layer."""

    logits: jax.Array  # (batch, tokens, vocabulary)
    values: list[
        jax.Array
    ]  # the neurons' values, which are above 0 where they fire, (batch, tokens, neurons)


def forward(parameters: Parameters, tokens: jax.Array, known: Config) -> Forward:
    """Logits of the next byte at every position, and the neurons' values, by the OPT of `models.families`."""
    model = load_model(known, parameters.__getitem__, dtype=None)
    x, values = embed(model, tokens, jnp.arange(tokens.shape[1])), []
    for layer, block in enumerate(model.blocks):
        stored = fill(opt.ffn(known, layer), lambda leaf: parameters[leaf.name])
        through = partial(pass_block, known, block, stored._replace(down=stored.down.T))
        x, h = jax.vmap(through)(x)
        values.append(h)
    return Forward(apply(model.ends.head, last_hidden(model, x)), values)


def pass_block(known: Config, block: opt.Block, ffn: FFN, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One text (tokens, width) through a block: it after the block, and its neurons' values."""
    values = []

    def feed_forward(inputs: jax.Array) -> jax.Array:
        values.append(jax.vmap(partial(neuron_values, ffn=ffn))(inputs))
        return jax.vmap(partial(sum_neurons, ffn=ffn))(values[0])

    after = opt.compute(known, block, x, Position(jnp.arange(len(x)), causal_attention, feed_forward))
    return after, values[0]


# --- training -------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """One phase of training, with a fresh optimiser; both rates go from begin to end in a line."""

    steps: int = 1000
    begin: float = 1.0  # factors of both rates
    end: float = 1.0
    warmup: int = 100  # steps in which the rates rise from 0
    density: float = 0.04  # the share of active neurons that the sparsity loss is steered to
    sparsity: float = 0.3  # weight of the sparsity loss at the start of the phase
    shrink: float = 0.0  # of fc1's weaker singular values, per Muon's own change of one
    rank: int = 32  # how many singular values of fc1 are not shrunk
    seed: int = 0
    batch: int = 16
    rate: float = 1e-2  # of Muon, for the matrices of the blocks
    rate_others: float = 3e-3  # of Adam, for embeddings, biases and norms
    decay: float = 0.02
    steering: float = 0.004  # how fast the sparsity weight follows, per step


# First learn at the full rate; then settle, while fc1 narrows to what a predictor can see.
PHASES = (
    Phase(),
    Phase(end=0.0, warmup=20, density=0.035, sparsity=0.5, shrink=0.5, rank=20, seed=1),
)


class State(NamedTuple):
    """What a step of training hands to the next."""

    parameters: Parameters
    memory: Any  # of the optimiser
    sparsity: jax.Array  # () the weight of the sparsity loss


class Progress(NamedTuple):
    """What a step tells: bytes' cross-entropy in nats, active share by layer, sparsity weight."""

    loss: jax.Array
    density: jax.Array
    sparsity: jax.Array


Step = Callable[[State, jax.Array, float], tuple[State, Progress]]


def byte_loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of logits (..., vocabulary) against the tokens that came (...)."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens))


def optimiser(phase: Phase) -> optax.GradientTransformation:
    """Muon for the blocks' matrices, Adam for the rest.

    In trials of 200 steps at the same price a step, Muon was at 1.75 nats where Adam was at 2.25.
    """

    def matrices(parameters: Parameters) -> dict[str, Any]:
        return {
            name: MuonDimensionNumbers() if getattr(value, "ndim", 0) == 2 and ".layers." in name else None
            for name, value in parameters.items()
        }

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            phase.rate,
            weight_decay=phase.decay,
            consistent_rms=MUON_SCALE,
            adam_learning_rate=phase.rate_others,
            muon_weight_dimension_numbers=matrices,
        ),
    )


def pace(index: int, phase: Phase) -> float:
    """The factor of both learning rates at a step of a phase."""
    line = phase.begin + (phase.end - phase.begin) * index / phase.steps
    return min(1.0, (index + 1) / phase.warmup) * line


def shrink_tail(matrix: jax.Array, rank: int, by: jax.Array) -> jax.Array:
    """Lower all but the largest singular values of (rows, columns) by the same amount, to 0 at least.

    It is the proximal step of a truncated nuclear norm.  Muon makes all directions of fc1 about as
    strong as each other; a predictor of low rank then sees too little of what decides which
    neurons fire.  Here the weaker directions vanish, and the loss moves what it needs to the rest.
    """
    squares, vectors = jnp.linalg.eigh(matrix.T @ matrix)  # ascending
    values = jnp.sqrt(jnp.maximum(squares, 1e-12))
    tail = jnp.arange(len(values)) < len(values) - rank
    kept = jnp.where(tail, jnp.maximum(1 - by / values, 0), 1)
    return jnp.matmul(matrix @ (vectors * kept), vectors.T)


def make_step(parameters: Parameters, shape: Shape, phase: Phase) -> tuple[State, Step]:
    """The state before a phase, and the function that makes one step from (batch, tokens).

    The loss is cross-entropy plus a weight times the mean activation after the ReLU.  That weight
    rises while more neurons than wanted are active and falls while fewer are: sparsity is what is
    asked for, not the by-product of a constant.
    """
    update, known = optimiser(phase), parse_config(json.dumps(config(shape)))
    unit = phase.rate * MUON_SCALE * max(shape.width, shape.neurons) ** 0.5

    def loss(parameters: Parameters, tokens: jax.Array, sparsity: jax.Array) -> Any:
        result = forward(parameters, tokens[:, :-1], known)
        of_bytes = byte_loss(result.logits, tokens[:, 1:])
        activation = jnp.stack([h.mean() for h in result.values]).mean()
        density = jnp.stack([(h > 0).mean() for h in result.values])
        return of_bytes + sparsity * activation, (of_bytes, density)

    @jax.jit
    def step(state: State, tokens: jax.Array, factor: float) -> tuple[State, Progress]:
        slopes, (of_bytes, density) = jax.grad(loss, has_aux=True)(state.parameters, tokens, state.sparsity)
        changes, memory = update.update(slopes, state.memory, state.parameters)
        changes = jax.tree.map(lambda change: factor * change, changes)
        parameters = optax.apply_updates(state.parameters, changes)
        if phase.shrink:
            for name in (f"model.decoder.layers.{i}.fc1.weight" for i in range(shape.layers)):
                by = phase.shrink * unit * factor
                parameters[name] = shrink_tail(parameters[name], phase.rank, by)
        error = jnp.clip(density.mean() / phase.density - 1, -1, 1)
        sparsity = state.sparsity * jnp.exp(phase.steering * error)
        return State(parameters, memory, sparsity), Progress(of_bytes, density, state.sparsity)

    return State(parameters, update.init(parameters), jnp.float32(phase.sparsity)), step


def crops(text: bytes, shape: Shape, phase: Phase) -> Iterator[jax.Array]:
    """Random crops of a text for ever, (batch, context + 1) int32: inputs, and the byte after."""
    corpus, inside = np.frombuffer(text, np.uint8), np.arange(shape.context + 1)
    random = np.random.default_rng(phase.seed)
    while True:
        starts = random.integers(0, len(corpus) - len(inside) + 1, phase.batch)
        yield jnp.asarray(corpus[starts[:, None] + inside], jnp.int32)


def train(
    text: bytes, shape: Shape, phases: tuple[Phase, ...], report: Callable[[int, Progress], None]
) -> Parameters:
    """Fit the model to random crops of a text; report is called after every step."""
    parameters = initial_parameters(jax.random.key(phases[0].seed), shape)
    done = 0
    for phase in phases:
        state, step = make_step(parameters, shape, phase)
        for index, tokens in zip(range(phase.steps), crops(text, shape, phase), strict=False):
            state, progress = step(state, tokens, pace(index, phase))
            done += 1
            report(done, progress)
        parameters = state.parameters
    return parameters


# --- the stored model -----------------------------------------------------------------------------

Weights = dict[str, npt.NDArray[np.float16]]


def rounded(parameters: Parameters) -> Weights:
    """The weights as the checkpoint stores them; everything after training is judged on these."""
    return {name: np.asarray(value).astype(np.float16) for name, value in parameters.items()}


# --- the predictors -------------------------------------------------------------------------------


def origin_of(split: Split, checkpoint: Checkpoint) -> Origin:
    """What the predictors are made of; the part to judge on is a file of its own, held_out.txt."""
    whole, held_out = (
        sha256(text).hexdigest() for text in (split.verses, pieces(split.verses, split.ranges.judge))
    )
    config = checkpoint.config
    return Origin(
        fingerprint(checkpoint.tensors, checkpoint.config_text),
        config.activation,
        config.tau,
        fit=Source(whole, split.ranges.fit),
        choose=Source(whole, split.ranges.choose),
        judge=Source(held_out, ((0, SLICE),)),
    )


def fit_and_judge(folder: Path, split: Split, plan: FitPlan) -> tuple[Predictors, Judgement]:
    """Predictors of the checkpoint in a folder, as `flashref train` fits them; judged once."""
    checkpoint = open_checkpoint(folder)
    parts = cut_parts(byte_ids(split.verses), split.ranges, checkpoint.config.context)
    parts = parts._replace(fit=some_chunks(parts.fit, FIT_CHUNKS, seed=0))
    origin = origin_of(split, checkpoint)
    made_of = {"model": origin.fingerprint, "--share": plan.share}
    with open_partial_dir(folder / FILE_NAME, made_of) as partial_dir:
        outcome = fit_predictors(checkpoint, parts, plan, partial_dir, say_progress)
        judgement = judge_predictors(
            checkpoint, outcome.predictors, parts.judge, WINDOWS, WINDOWS, say_progress
        )
        predictors = with_statistics(outcome, judgement, checkpoint.config.neurons, origin)
        (folder / FILE_NAME).unlink(missing_ok=True)
        save_predictors(folder / FILE_NAME, predictors)
        remove_partial_dir(partial_dir)
    return predictors, judgement


# --- the command ----------------------------------------------------------------------------------


def say(message: str) -> None:
    """Progress goes to stderr."""
    print(message, file=sys.stderr, flush=True)


def progress_printer(steps: int) -> Callable[[int, Progress], None]:
    """A report function that prints every 50th step and the time left."""
    start = time.monotonic()

    def report(step: int, progress: Progress) -> None:
        if step % 50 and step != steps:
            return
        loss, density = float(progress.loss), 100 * np.asarray(progress.density)
        left = (time.monotonic() - start) / step * (steps - step)
        shares = " ".join(f"{share:.1f}" for share in density)
        say(f"step {step}/{steps}: {loss:.3f} nats, active {shares} %, {left / 60:.1f} min left")

    return report


def say_progress(what: str, done: int, total: int) -> None:
    """What fitting says of itself, some ten times a layer."""
    if done % max(total // 10, 1) == 0 or done == total:
        say(f"predictors: {what}: {done}/{total}")


def results(predictors: Predictors, judgement: Judgement, whole: int) -> dict[str, Any]:
    """What the JSON line says: all of it of the held-out text. whole: bytes of the model."""
    errors = [layer.errors for layer in judgement.layers]
    pooled = total_errors(predictors.layers, judgement.layers)
    kept = [layer.residency for layer in judgement.layers if layer.residency]
    neurons = errors[0].active + errors[0].inactive
    return {
        "nats_per_byte": math.log(judgement.perplexities.dense),
        "perplexities": judgement.perplexities._asdict(),
        "active_share": [each.active / neurons for each in errors],
        "mean_active_share": pooled.active / (neurons * len(errors)),
        "ranks": [len(one.a) for one in predictors.layers if one],
        "bytes": {
            "model": whole,
            "predictors": sum(array.nbytes for array in predictor_tensors(predictors).values()),
        },
        "false_negative_rate": pooled.false_negative_rate,
        "false_positive_rate": pooled.false_positive_rate,
        "false_negative_rates": [each.false_negative_rate for each in errors],
        "false_positive_rates": [each.false_positive_rate for each in errors],
        "resident_share": (np.sum([each.kept for each in kept], 0) / (neurons * len(kept))).tolist(),
        "new_share": (np.sum([each.new for each in kept], 0) / (neurons * len(kept))).tolist(),
        "mean_resident": [(each.kept / each.tokens).tolist() for each in kept],
        "largest_resident": [each.largest.tolist() for each in kept],
    }


def main() -> int:
    """Train, fit, judge, write; see the module's first lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, help="the .deb, or the text that is inside it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny")
    parser.add_argument("--weights", type=Path, help="a model.safetensors: fit predictors only")
    parser.add_argument("--share", type=float, default=FitPlan().share, help="of the model's bytes")
    arguments = parser.parse_args()
    shape, plan = Shape(), FitPlan(share=arguments.share, window=WINDOWS)
    split = split_text(read_text(arguments.text))
    arguments.out.mkdir(parents=True, exist_ok=True)

    if arguments.weights:
        weights = load_file(arguments.weights)
    else:
        steps = sum(phase.steps for phase in PHASES)
        training = pieces(split.verses, split.ranges.fit)
        weights = rounded(train(training, shape, PHASES, progress_printer(steps)))
    (arguments.out / "config.json").write_text(json.dumps(config(shape), indent=2) + "\n")
    (arguments.out / "held_out.txt").write_bytes(pieces(split.verses, split.ranges.judge))
    save_file(dict(sorted(weights.items())), arguments.out / "model.safetensors", {"format": "pt"})

    predictors, judgement = fit_and_judge(arguments.out, split, plan)
    print(json.dumps(results(predictors, judgement, sum(value.nbytes for value in weights.values()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
