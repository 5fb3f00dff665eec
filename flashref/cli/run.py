"""`flashref run`: a model writes text with half of its weights in memory, and every byte is accounted for."""

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from flashref.cli import options as words
from flashref.cli.report import progress
from flashref.cli.result import Activation, Memory, Result
from flashref.cli.run_report import show
from flashref.cli.setup import Setup, set_up, with_own_activation
from flashref.cli.wish import Wish, read_wish
from flashref.models.memory import peak_bytes, uncounted
from flashref.models.session import (
    Decoded,
    Perplexities,
    decode_dense,
    decode_flash,
    measure_perplexities,
)
from flashref.simulate.flash import Flash, unbundled_layouts
from flashref.simulate.methods import Method, measured_cost, replay_methods, simulated_cost
from flashref.simulate.scaled import scale_to_opt_6_7b
from flashref.simulate.trace import ActivationTrace, trace_of
from flashref.simulate.trace_file import Description, save_trace
from flashref.storage.progress import Progress


def add_parser(commands: Any) -> None:
    """`run` among the commands."""
    parser = commands.add_parser("run", help="write text with a model read from flash, and account for it")
    words.add_run_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Decode, verify, replay and report; 0 if everything that was checked held, else 1."""
    wish = read_wish(options)
    with ExitStack() as resources, progress(options.quiet) as advance:
        wish, setup = set_up(wish, resources, advance)
        decoder, ffns = setup.decoder, setup.ffns
        decoded = decode_flash(
            decoder, wish.prompt_ids, options.tokens, wish.choose(), options.cold, ffns, setup.proof, advance
        )
        perplexities = _perplexities(wish, setup, advance)
        dense_ids = None
        if ffns is not None:
            dense_ids = decode_dense(decoder.model, wish.prompt_ids, options.tokens, wish.choose(), ffns)
        methods, scaled = _replay(wish, setup, decoded)
        memory = _memory(wish, setup, decoded)  # last: what the tables take counts, too
    if options.save_trace is not None:
        _save_trace(wish, decoded)
    result = _result(wish, setup, decoded, dense_ids, perplexities, memory, methods, scaled)
    if options.json:
        print(json.dumps(result.as_json(), indent=2, allow_nan=False))
    else:
        show(result, methods, scaled, setup.layouts[0], setup.proof)
    return 1 if setup.proof.failure is not None or memory.held is False else 0


def _perplexities(wish: Wish, setup: Setup, advance: Progress) -> Perplexities | None:
    if not wish.held_out:
        return None
    unchanged = None
    config = wish.checkpoint.config
    if wish.own != (config.activation, config.tau) and setup.ffns is not None:
        unchanged = with_own_activation(wish, setup.ffns)
    return measure_perplexities(wish.held_out, setup.decoder, setup.ffns, advance, unchanged=unchanged)


def _memory(wish: Wish, setup: Setup, decoded: Decoded) -> Memory:
    """The peak until now beside what it may be."""
    tensors = wish.checkpoint.tensors
    predictors, config = wish.predictors.layers if wish.predictors else (), wish.checkpoint.config
    measured = min(len(wish.held_out or ()), config.context)
    beside = uncounted(
        setup.decoder.model,
        setup.demand,
        setup.budget,
        setup.layouts[0],
        sum(tensors[name].tensors[name].length for name in tensors if name.endswith(".bias")),
        decoded.predicted,
        predictors,
        max(len(wish.prompt_ids) + wish.options.tokens, measured) - 1,
    )
    peak = max(0, peak_bytes() - wish.before)
    allowed = setup.budget.memory + sum(beside)
    held = peak <= allowed if wish.options.no_proof else None
    return Memory(
        setup.budget.memory,
        setup.budget.dram_bytes,
        wish.before,
        peak,
        allowed,
        **beside._asdict(),
        held=held,
    )


def _replay(wish: Wish, setup: Setup, decoded: Decoded) -> tuple[Sequence[Method], Sequence[Method]]:
    """The five methods on what is read, and at OPT 6.7B's shape; really read if there is a disk.

    Without a proof neither is really read nor at another shape: that takes more memory than the run.
    """
    storage, sparse = setup.storage, list(wish.sparse)
    costs = [simulated_cost(wish.device)]
    if storage.read_rows is not None:
        costs.append(measured_cost(storage.read, storage.read_rows))
    bundled = tuple(setup.layouts[layer] for layer in sparse)
    flash = Flash(
        bundled=bundled,
        unbundled=tuple(storage.rows[layer] for layer in sparse)
        if storage.rows
        else tuple(map(unbundled_layouts, bundled)),
        image_bytes=storage.image.container.size,
        tensor_bytes=setup.demand.total,
    )
    demand = setup.demand._replace(layers=len(sparse), dense=())
    budget = setup.budget._replace(capacities=tuple(setup.budget.capacities[layer] for layer in sparse))
    statistics = [None if known is None else known[sparse] for known in wish.statistics()]
    trace, count_moves = _trace(wish, decoded), words.MOVES[wish.options.placement]
    methods = replay_methods(trace, flash, demand, budget, count_moves, costs)
    if wish.options.no_proof:  # the other model's tables would take more memory than this one
        return methods, ()
    scaled = scale_to_opt_6_7b(
        trace, wish.options.window, statistics[0], statistics[1], count_moves, wish.device
    )
    return methods, scaled


def _save_trace(wish: Wish, decoded: Decoded) -> None:
    options = wish.options
    source = f"flashref run --predictor {options.predictor} --semantics {options.semantics}"
    description = Description(what=_model_name(options), source=source)
    save_trace(options.save_trace, _trace(wish, decoded), description)


def _trace(wish: Wish, decoded: Decoded) -> ActivationTrace:
    """What was predicted, token by token; the prompt's tokens are not counted."""
    units = [wish.checkpoint.config.neurons] * len(wish.sparse)
    return trace_of(decoded.predicted, units, decoded.first_counted)


def _model_name(options: argparse.Namespace) -> str:
    return "tiny" if options.model == words.TINY else str(options.model)


def _texts(wish: Wish, new_ids: list[int]) -> tuple[str | None, str | None]:
    """Prompt and new text as the tokenizer has them; None without one: the token ids are the truth."""
    if wish.tokenizer is None:
        return None, None
    prompt, whole = (wish.tokenizer.decode(ids) for ids in (wish.prompt_ids, [*wish.prompt_ids, *new_ids]))
    if whole.startswith(prompt):  # what begins a text may look otherwise than what goes on
        return prompt, whole[len(prompt) :]
    return prompt, wish.tokenizer.decode(new_ids)


def _result(
    wish: Wish,
    setup: Setup,
    decoded: Decoded,
    dense_ids: list[int] | None,
    perplexities: Perplexities | None,
    memory: Memory,
    methods: Sequence[Method],
    scaled: Sequence[Method],
) -> Result:
    options, budget, errors = wish.options, setup.budget, decoded.errors
    prompt, text = _texts(wish, decoded.new_ids)
    given = perplexities._asdict() if perplexities else dict.fromkeys(Perplexities._fields)
    failed = setup.proof.failure is not None
    config = wish.checkpoint.config
    return Result(
        model=_model_name(options),
        prompt=prompt,
        text=text,
        token_ids=[*wish.prompt_ids, *decoded.new_ids],
        tokens=len(decoded.new_ids),
        activation=Activation(config.activation, config.tau, *wish.own),
        semantics=options.semantics,
        window=budget.window,
        rows=[None if layer in setup.demand.dense else rows for layer, rows in enumerate(budget.capacities)],
        memory_fraction=(
            options.memory if isinstance(options.memory, float) else budget.memory / setup.demand.total
        ),
        memory=memory,
        device=options.device,
        reader=options.reader,
        direct=setup.storage.direct,
        verified=False if failed else None if setup.ffns is None else True,
        same_as_dense=None if dense_ids is None else decoded.new_ids == dense_ids,
        overflows=decoded.overflows,
        predictor={
            "false_negative_rate": None if errors is None else errors.false_negative_rate,
            "false_positive_rate": None if errors is None else errors.false_positive_rate,
        },
        # JSON has no infinity: a loss beyond every float is null, as is one that was not measured.
        perplexity={
            which: value if value is not None and math.isfinite(value) else None
            for which, value in given.items()
        },
        methods=[method._asdict() for method in methods],
        scaled=[method._asdict() for method in scaled],
    )
