"""`flashref run`: a model writes text with half of its weights in memory, and every byte is accounted for."""

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from flashref.bundle import bundle_layout
from flashref.cli import options as words
from flashref.cli import report
from flashref.cli.opening import Storage, block_for, open_storage, read_held_out, read_predictors
from flashref.decode import Predict
from flashref.ffn import active_neurons
from flashref.predictor import predict_active
from flashref.simulate.flash import Flash, unbundled_layouts
from flashref.simulate.methods import Method, measured_cost, replay_methods, simulated_cost
from flashref.simulate.scaled import scale_to_opt_6_7b
from flashref.simulate.trace import Trace, trace_of
from flashref.simulate.trace_file import Description, save_trace
from flashref.storage.image import image_tensor
from flashref.transformer import generate as text
from flashref.transformer.budget import Budget, Demand, demand_of, solve_budget
from flashref.transformer.checkpoint import Checkpoint, load_ffn, load_tensor, open_checkpoint
from flashref.transformer.flash import Decoder, empty_layers
from flashref.transformer.opt import load_model
from flashref.transformer.predictors import Predictors, predictor_bytes
from flashref.transformer.proof import Proof
from flashref.transformer.session import Advance, Decoded, decode_dense, decode_flash, measure_perplexities
from flashref.types import FFN, Array, Device, DomainError, ImageError, Layout, same, widen


class Wish(NamedTuple):
    """What was asked for, read and checked before anything is packed. mean, largest: |C_t|, if known."""

    options: argparse.Namespace
    device: Device
    checkpoint: Checkpoint
    prompt_ids: list[int]
    held_out: list[int] | None
    predictors: Predictors | None

    def choose(self) -> text.Choose:
        """How the next token is chosen; each text has a generator of its own, from the same seed."""
        return text.sampler(self.options.temperature, self.options.seed)

    def statistics(self) -> tuple[Array | None, Array | None]:
        """The mean and the largest |C_t| of each layer and window, where they are stored."""
        return (
            (self.predictors.mean_resident, self.predictors.largest_resident)
            if self.predictors
            else (None, None)
        )


class Setup(NamedTuple):
    """Everything opened and solved: the model on flash, its memory, and the proof that watches it."""

    storage: Storage
    layouts: tuple[Layout, ...]
    demand: Demand
    budget: Budget
    ffns: tuple[FFN, ...]
    proof: Proof
    decoder: Decoder


def add_parser(commands: Any) -> None:
    """`run` among the commands."""
    parser = commands.add_parser("run", help="write text with a model read from flash, and account for it")
    words.add_run_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Decode, verify, replay and report; 0 if everything that was checked held, else 1."""
    wish = _read_wish(options)
    with ExitStack() as resources, report.progress(options.quiet) as advance:
        setup = _set_up(wish, resources, advance)
        _, _, _, _, ffns, proof, decoder = setup
        decoded = decode_flash(
            decoder, wish.prompt_ids, options.tokens, wish.choose(), options.cold, ffns, proof, advance
        )
        dense_ids = decode_dense(decoder.model, wish.prompt_ids, options.tokens, wish.choose(), ffns)
        perplexity = {"dense": math.inf, "flash": math.inf}
        if wish.held_out:
            perplexity = measure_perplexities(wish.held_out, decoder, ffns, advance)._asdict()
        methods, scaled = _replay(wish, setup, decoded)
    if options.save_trace is not None:
        _save_trace(wish, decoded)
    result = _result(wish, setup, decoded, dense_ids, perplexity, methods, scaled)
    if options.json:
        print(json.dumps(result._asdict(), indent=2, allow_nan=False))
    else:
        report.show(result, methods, scaled, setup.layouts[0], setup.budget, proof)
    return 0 if result.verified else 1


def _read_wish(options: argparse.Namespace) -> Wish:
    """The checkpoint's headers, the prompt, predictors and held-out text; a mistake is found here."""
    device = words.device(options.device)
    words.check_new_file("--save-trace", options.save_trace)
    checkpoint = open_checkpoint(options.model)
    config = checkpoint.config
    if config.vocabulary > 256 and options.prompt_ids is None:
        raise DomainError(
            f"{options.model}: has a vocabulary of {config.vocabulary}, but text is bytes here; "
            "give the prompt as token ids, with --prompt-ids"
        )
    prompt_ids = options.prompt_ids or text.encode_bytes(options.prompt)
    text.check_request(prompt_ids, options.tokens, config.context, config.vocabulary)
    held_out = read_held_out(options, config.vocabulary)
    wish = Wish(options, device, checkpoint, prompt_ids, held_out, read_predictors(options, checkpoint))
    name = checkpoint.layers[0]["up"]
    dtype = checkpoint.tensors[name].tensors[name].dtype
    fields = tuple(checkpoint.layers[0])
    planned = bundle_layout(config.neurons, config.width, dtype, fields, block_for(device))
    _solve(wish, planned)  # too small a memory is refused before a long packing
    return wish


def _solve(wish: Wish, layout: Layout) -> tuple[Demand, Budget]:
    """What the model asks of memory, and how the memory that is given is shared."""
    checkpoint, options = wish.checkpoint, wish.options
    counted = wish.predictors if options.predictor == "trained" else None
    demand = demand_of(
        {name: container.tensors[name].length for name, container in checkpoint.tensors.items()},
        {name for fields in checkpoint.layers for name in fields.values()},
        predictor_bytes(counted) if counted else 0,
        checkpoint.config.layers,
        layout,
    )
    return demand, solve_budget(demand, options.memory, options.window, *wish.statistics())


def _set_up(wish: Wish, resources: ExitStack, advance: Advance) -> Setup:
    """The image opened or packed, the budget solved for it, and weights in memory to judge it by."""
    options, checkpoint = wish.options, wish.checkpoint
    storage = open_storage(options, checkpoint, wish.device, resources, advance)
    layers = range(checkpoint.config.layers)
    layouts = tuple(storage.image.layouts[layer][0] for layer in layers)
    demand, budget = _solve(wish, layouts[0])
    model = load_model(checkpoint.config, partial(image_tensor, storage.image))
    if not same(model, load_model(checkpoint.config, partial(load_tensor, checkpoint))):
        raise ImageError(
            f"{storage.image.container.path}: its resident tensors are not the checkpoint's, although "
            "their checksums agree; remove it, or pack another under another name"
        )
    stored = [load_ffn(checkpoint, layer) for layer in layers]
    ffns = tuple(_widened(ffn) for ffn in stored)
    semantics = words.SEMANTICS[options.semantics]
    proof = Proof(ffns, budget, semantics, exact=options.predictor == "exact")
    decoder = Decoder(
        model,
        empty_layers(storage.image, model, demand, budget),
        _predict(options.predictor, wish.predictors, ffns),
        words.PLACEMENTS[options.placement],
        proof.checking_reader(storage.read, layouts, stored),
        semantics,
    )
    return Setup(storage, layouts, demand, budget, ffns, proof, decoder)


def _replay(wish: Wish, setup: Setup, decoded: Decoded) -> tuple[Sequence[Method], Sequence[Method]]:
    """The five methods on this model, really read if there is a disk, and at OPT 6.7B's shape."""
    storage, demand = setup.storage, setup.demand
    costs = [simulated_cost(wish.device)]
    if storage.read_rows is not None:
        costs.append(measured_cost(storage.read, storage.read_rows))
    flash = Flash(
        bundled=setup.layouts,
        unbundled=storage.rows or tuple(map(unbundled_layouts, setup.layouts)),
        image_bytes=storage.image.container.size,
        tensor_bytes=demand.total,
    )
    trace, count_moves = _trace(wish, decoded), words.MOVES[wish.options.placement]
    return (
        replay_methods(trace, flash, demand, setup.budget, count_moves, costs),
        scale_to_opt_6_7b(trace, wish.options.window, *wish.statistics(), count_moves, wish.device),
    )


def _save_trace(wish: Wish, decoded: Decoded) -> None:
    options = wish.options
    source = f"flashref run --predictor {options.predictor} --semantics {options.semantics}"
    description = Description(what=_model_name(options), source=source)
    save_trace(options.save_trace, _trace(wish, decoded), description)


def _trace(wish: Wish, decoded: Decoded) -> Trace:
    """What was predicted, token by token; the prompt's tokens are not counted."""
    config = wish.checkpoint.config
    return trace_of(decoded.predicted, [config.neurons] * config.layers, decoded.first_counted)


def _model_name(options: argparse.Namespace) -> str:
    return "tiny" if options.model == words.TINY else str(options.model)


def _result(
    wish: Wish,
    setup: Setup,
    decoded: Decoded,
    dense_ids: list[int],
    perplexity: dict[str, float],
    methods: Sequence[Method],
    scaled: Sequence[Method],
) -> report.Result:
    options = wish.options

    def shown(ids: list[int]) -> str | None:  # the token ids are the truth
        return text.decode_bytes(ids) if wish.checkpoint.config.vocabulary <= 256 else None

    return report.Result(
        model=_model_name(options),
        prompt=shown(wish.prompt_ids),
        text=shown(decoded.new_ids),
        token_ids=[*wish.prompt_ids, *decoded.new_ids],
        tokens=len(decoded.new_ids),
        semantics=options.semantics,
        window=setup.budget.window,
        memory_fraction=options.memory,
        device=options.device,
        reader=options.reader,
        direct=setup.storage.direct,
        verified=setup.proof.failure is None,
        same_as_dense=decoded.new_ids == dense_ids,
        overflows=decoded.overflows,
        predictor={
            "false_negative_rate": decoded.errors.false_negative_rate,
            "false_positive_rate": decoded.errors.false_positive_rate,
        },
        # JSON has no infinity: a loss beyond every float is null, as is one that was not measured.
        perplexity={which: value if math.isfinite(value) else None for which, value in perplexity.items()},
        methods=[method._asdict() for method in methods],
        scaled=[method._asdict() for method in scaled],
    )


def _predict(kind: str, predictors: Predictors | None, ffns: Sequence[FFN]) -> tuple[Predict, ...]:
    """A function x → ids for every layer."""
    if kind == "exact" or predictors is None:
        return tuple(lambda x, ffn=ffn: active_neurons(x, ffn) for ffn in ffns)
    wide = [p._replace(a=widen(p.a), b=widen(p.b)) for p in predictors.layers]
    return tuple(lambda x, predictor=predictor: predict_active(x, predictor) for predictor in wide)


def _widened(ffn: FFN) -> FFN:
    """The same weights as float32: the same bits in every result, and no widening at every token."""
    arrays = {name: widen(array) for name, array in ffn._asdict().items() if isinstance(array, np.ndarray)}
    # Column by column: the pre-activations are summed over d.
    return FFN(**{**ffn._asdict(), **arrays, "up": np.asfortranarray(widen(ffn.up))})
