"""The check of a whole model, for engines that show nothing else: logits against float64. DEC-11."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashref.arithmetic import ACTIVATIONS
from flashref.conformance.adapter import Facts
from flashref.conformance.checks.check import Call, Check, ask, expect_equal
from flashref.conformance.transport.subject import Breach, Subject
from flashref.ffn import active_neurons, dense_ffn, sparse_ffn
from flashref.models.checkpoint import load_ffn, load_tensor, open_checkpoint
from flashref.models.model import Model, load_model, one_at_a_time
from flashref.models.predictors import FILE_NAME, load_predictors
from flashref.predictor import predict_active
from flashref.types import FFN, Array, Predictor, widen

PREDICTORS = ("exact", "trained")
TIMES = 4  # as far again as flashref's own float32 is from float64: another order, another kernel
# Texts on which no trained predictor decides within rounding of its threshold: a test says so.
TEXTS = (b"of the LORD", b"the son of D", b"unto Moses")


class Loaded(NamedTuple):
    """A model directory: the model in both precisions, its FFNs and its predictors."""

    single: Model
    double: Model
    ffns: tuple[FFN, ...]
    predictors: tuple[Predictor | None, ...]


@cache
def loaded(model_dir: str) -> Loaded:
    """The model of a directory; it is read once."""
    checkpoint = open_checkpoint(model_dir)
    config = checkpoint.config
    load = partial(load_tensor, checkpoint)
    path = Path(model_dir) / FILE_NAME
    predictors = load_predictors(path, config.layers, config.neurons, config.width).layers
    ffns = tuple(load_ffn(checkpoint, layer) for layer in range(config.layers))
    return Loaded(load_model(config, load), load_model(config, load, np.float64), ffns, predictors)


def texts(facts: Facts) -> list[Call]:
    """The shipped tiny model on a few words, with the oracle and with its trained predictors."""
    model_dir = str(files("flashref") / "data" / "tiny")
    ids = [np.frombuffer(text, np.uint8).astype(np.int64) for text in TEXTS]
    return [Call("logits", (model_dir, token_ids, name)) for token_ids in ids for name in PREDICTORS]


def float64_ffn(x: Array, ffn: FFN, chosen: Array) -> Array:
    """Chapter 10 in float64, over chosen neurons; only for models without a gate."""
    z = widen(ffn.up[chosen]).astype(np.float64) @ x
    z = z if ffn.up_bias is None else z + widen(ffn.up_bias[chosen])
    y = ACTIVATIONS[ffn.activation](z, np.float32(ffn.tau)) @ widen(ffn.down[chosen]).astype(np.float64)
    return np.asarray(y if ffn.down_bias is None else y + widen(ffn.down_bias))


def logits_of(model: Model, token_ids: Array, feed_forward: Callable[[int, Array], Array]) -> Array:
    """The logits after each token, (tokens, vocabulary)."""
    forward = one_at_a_time(model, feed_forward)
    return np.stack([forward(token) for token in token_ids.tolist()])


def exact_and_own(model_dir: str, token_ids: Array, predictor: str) -> tuple[Array, Array]:
    """The logits in float64, and flashref's own in float32, over the neurons that the predictor chooses."""
    model = loaded(model_dir)

    def chosen(layer: int, x: Array) -> Array:
        if predictor == "exact":
            return active_neurons(x.astype(np.float32), model.ffns[layer])
        trained = model.predictors[layer]
        if trained is None:  # decision 15
            return np.arange(len(model.ffns[layer].up))
        return predict_active(x.astype(np.float32), trained)

    def single(layer: int, x: Array) -> Array:
        if predictor == "exact":
            return dense_ffn(x, model.ffns[layer])
        return sparse_ffn(x, model.ffns[layer], chosen(layer, x))

    def double(layer: int, x: Array) -> Array:
        return float64_ffn(x, model.ffns[layer], chosen(layer, x))

    return logits_of(model.double, token_ids, double), logits_of(model.single, token_ids, single)


def judge_logits(subject: Subject, call: Call) -> None:
    """The largest difference from float64 is at most four times flashref's own in float32."""
    model_dir, token_ids, predictor = call.arguments
    logits, counters = ask(subject, call)
    exact, own = exact_and_own(model_dir, token_ids, predictor)
    expect_equal("shape of the logits", logits.shape, exact.shape)
    allowed = TIMES * float(np.abs(own - exact).max())
    errors = np.abs(logits - exact)
    if not errors.max() <= allowed:  # NaN is not
        token, entry = (int(i) for i in np.unravel_index(np.argmax(errors), errors.shape))
        raise Breach(
            "fail",
            f"{predictor} predictor, logit {entry} after token {token}: got {logits[token, entry]:.9g}, "
            f"exact {exact[token, entry]:.9g}, error {errors[token, entry]:.3g}, at most {allowed:.3g}",
        )
    judge_bytes(model_dir, counters)


def judge_bytes(model_dir: str, counters: dict[str, Any]) -> None:
    """Where rows and bytes are counted, they agree: useful_bytes is rows read times the bundle's bytes."""
    if not {"loaded", "bypassed", "useful_bytes"} <= set(counters):
        return
    up = loaded(model_dir).ffns[0].up
    rows = counters["loaded"] + counters["bypassed"]
    expect_equal("useful_bytes", counters["useful_bytes"].tolist(), (rows * 2 * up[0].nbytes).tolist())


CHECKS: Sequence[Check] = (Check("DEC-11", ("logits",), texts, judge_logits),)
