"""`flashref run`: a model writes text with half of its weights in memory, and every byte is accounted for."""

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from flashref.cli import options as words
from flashref.cli import report
from flashref.cli.opening import open_storage, read_held_out, read_predictors
from flashref.decode import Predict, sum_predicted, sum_resident
from flashref.ffn import active_neurons
from flashref.predictor import predict_active
from flashref.simulate.methods import (
    Flash,
    Trace,
    measured_cost,
    replay_methods,
    simulated_cost,
    unbundled_layouts,
)
from flashref.simulate.scaled import scale_to_opt_6_7b
from flashref.slots import fill_holes, swap_with_last
from flashref.storage.device import PRESETS
from flashref.storage.image import image_tensor
from flashref.transformer import generate as text
from flashref.transformer.budget import demand_of, solve_budget
from flashref.transformer.checkpoint import load_ffn, load_tensor, open_checkpoint
from flashref.transformer.flash import Decoder, empty_layers
from flashref.transformer.opt import load_model
from flashref.transformer.predictors import FILE_NAME, Predictors, predictor_bytes
from flashref.transformer.proof import Proof
from flashref.transformer.session import decode_dense, decode_flash, measure_perplexities
from flashref.types import FFN, DomainError, ImageError, same, widen

TINY = Path(str(files("flashref"))) / "data" / "tiny"
PROMPT = "And the king said unto David, "
SEMANTICS = {"resident": sum_resident, "predicted": sum_predicted}
PLACEMENTS = {"swap_with_last": swap_with_last, "fill_holes": fill_holes}


def add_parser(commands: Any) -> None:
    """The options of `flashref run`."""
    parser = commands.add_parser("run", help="write text with a model read from flash, and account for it")
    add = parser.add_argument
    add(
        "--model",
        metavar="DIR",
        default=TINY,
        type=Path,
        help="Hugging Face checkpoint (default: a tiny one)",
    )
    add("--image", metavar="FILE", type=Path, help="its flash image: used if it exists, else packed and kept")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", default=PROMPT, help=f"(default: {PROMPT!r})")
    prompts.add_argument("--prompt-ids", metavar="IDS", type=words.ids, help="token ids, such as 3,17,96")
    add("--tokens", metavar="N", type=words.at_least(1), default=96, help="new tokens (default: 96)")
    add(
        "--memory",
        metavar="SHARE",
        type=words.fraction,
        default=0.5,
        help="of the model's bytes (default: 0.5)",
    )
    add(
        "--window",
        metavar="K",
        type=words.at_least(1),
        help="tokens (default: the largest up to 5 that fits)",
    )
    add(
        "--semantics",
        choices=SEMANTICS,
        default="resident",
        help="which rows the FFN sums (default: resident)",
    )
    add(
        "--predictor",
        choices=("trained", "exact"),
        default="trained",
        help="exact: an oracle, not in the account",
    )
    add("--predictors", metavar="FILE", type=Path, help=f"trained predictors (default: DIR/{FILE_NAME})")
    add("--placement", choices=PLACEMENTS, default="swap_with_last", help="of rows (default: swap_with_last)")
    add(
        "--device",
        metavar="PRESET|FILE",
        default="paper_m1max_fig2b",
        help=f"JSON file, or {', '.join(PRESETS)}",
    )
    add("--reader", choices=("memory", "direct"), default="memory", help="direct: really read, with O_DIRECT")
    add(
        "--temperature",
        metavar="T",
        type=words.temperature,
        default=0.0,
        help="of sampling (default: 0, greedy)",
    )
    add("--seed", metavar="S", type=words.at_least(0), default=0, help="of sampling (default: 0)")
    add("--cold", action="store_true", help="empty the windows after the prompt")
    add(
        "--perplexity-bytes",
        metavar="N",
        type=words.at_least(0),
        default=1024,
        help="held-out bytes; 0: none",
    )
    add("--json", action="store_true", help="one JSON object instead of text and tables")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Decode, verify, replay and report; 0 if everything that was checked held, else 1."""
    device = words.device(options.device)
    checkpoint = open_checkpoint(options.model)
    config = checkpoint.config
    if config.vocabulary > 256:
        raise DomainError(
            f"{options.model}: has a vocabulary of {config.vocabulary}, but text is bytes here; "
            "use a byte-level model, of at most 256 tokens"
        )
    prompt_ids = options.prompt_ids or text.encode_bytes(options.prompt)
    text.check_request(prompt_ids, options.tokens, config.context, config.vocabulary)
    held_out = read_held_out(options, config.vocabulary)
    predictors = read_predictors(options, checkpoint)

    with ExitStack() as resources, report.progress(options.quiet) as advance:
        storage = open_storage(options, checkpoint, device, resources, advance)
        layouts = [storage.image.layouts[layer][0] for layer in range(config.layers)]
        demand = demand_of(
            {name: container.tensors[name].length for name, container in checkpoint.tensors.items()},
            {name for fields in checkpoint.layers for name in fields.values()},
            predictor_bytes(predictors) if predictors and options.predictor == "trained" else 0,
            config.layers,
            layouts[0],
        )
        mean, largest = (
            (predictors.mean_resident, predictors.largest_resident) if predictors else (None, None)
        )
        budget = solve_budget(demand, options.memory, options.window, mean, largest)
        model = load_model(config, partial(image_tensor, storage.image))
        if not same(model, load_model(config, partial(load_tensor, checkpoint))):
            raise ImageError(
                f"{storage.image.container.path}: its resident tensors are not the checkpoint's, although "
                "their checksums agree; remove it, or pack another under another name"
            )
        stored = [load_ffn(checkpoint, layer) for layer in range(config.layers)]
        ffns = [_widened(ffn) for ffn in stored]
        semantics = SEMANTICS[options.semantics]
        proof = Proof(ffns, budget, semantics, exact=options.predictor == "exact")
        decoder = Decoder(
            model,
            empty_layers(storage.image, model, demand, budget),
            _predict(options.predictor, predictors, ffns),
            PLACEMENTS[options.placement],
            proof.checking_reader(storage.read, layouts, stored),
            semantics,
        )

        def choose() -> text.Choose:  # each text has a generator of its own, from the same seed
            return text.sampler(options.temperature, options.seed)

        decoded = decode_flash(
            decoder, prompt_ids, options.tokens, choose(), options.cold, ffns, proof, advance
        )
        dense_ids = decode_dense(model, prompt_ids, options.tokens, choose(), ffns)
        perplexity = {"dense": math.inf, "flash": math.inf}
        if held_out:
            perplexity = measure_perplexities(held_out, decoder, ffns, proof, advance)._asdict()

        trace = Trace(decoded.predicted, decoded.first_counted)
        costs = [simulated_cost(device)]
        if storage.read_rows is not None:
            costs.append(measured_cost(storage.read, storage.read_rows))
        flash = Flash(
            bundled=tuple(layouts),
            unbundled=storage.rows or tuple(map(unbundled_layouts, layouts)),
            repeats=(1,) * config.layers,
            image_bytes=storage.image.container.size,
            tensor_bytes=demand.total,
        )
        methods = replay_methods(trace, flash, demand, budget, decoder.place, costs)
        scaled = scale_to_opt_6_7b(
            trace, config.neurons, options.window, mean, largest, decoder.place, device
        )
    result = report.Result(
        model="tiny" if options.model == TINY else str(options.model),
        prompt=text.decode_bytes(prompt_ids),
        text=text.decode_bytes(decoded.new_ids),
        token_ids=[*prompt_ids, *decoded.new_ids],
        tokens=len(decoded.new_ids),
        semantics=options.semantics,
        window=budget.window,
        memory_fraction=options.memory,
        device=options.device,
        reader=options.reader,
        direct=storage.direct,
        verified=proof.failure is None,
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
    if options.json:
        print(json.dumps(result._asdict(), indent=2, allow_nan=False))
    else:
        report.show(result, methods, scaled, layouts[0], budget, proof)
    return 0 if result.verified else 1


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
