"""What a run was asked for: words and files, read and checked before anything is packed."""

import argparse
import sys
from typing import NamedTuple

from flashref.bundle import Layout, bundle_layout
from flashref.cli import options as words
from flashref.ffn import SPARSE_ACTIVATIONS
from flashref.models import generate as text
from flashref.models.budget import Budget, Demand, demand_of, solve_budget
from flashref.models.checkpoint import Checkpoint, open_checkpoint, with_activation
from flashref.models.memory import available_bytes, resident_bytes
from flashref.models.predictors import FILE_NAME, Predictors, load_predictors, predictor_bytes
from flashref.models.storage import block_for, bundled_layers
from flashref.models.tokens import Tokenizer, open_tokenizer, read_text
from flashref.storage.device import Device
from flashref.types import STORED_DTYPES, Array, DomainError, ImageError


class Wish(NamedTuple):
    """What was asked for.

    checkpoint: its config has the activation that is run; own: the model's own activation, and tau.
    tokenizer: None where there is none and ids were given. before: bytes that the process had in memory
    before anything of the model but its headers and its tokenizer was.
    """

    options: argparse.Namespace
    device: Device
    checkpoint: Checkpoint
    own: tuple[str, float]
    tokenizer: Tokenizer | None
    prompt_ids: list[int]
    held_out: list[int] | None
    before: int
    predictors: Predictors | None

    @property
    def dense(self) -> tuple[int, ...]:
        """The layers without a predictor, resident whole (decision 15)."""
        if self.options.predictor != "trained" or self.predictors is None:
            return ()
        return tuple(layer for layer, one in enumerate(self.predictors.layers) if one is None)

    @property
    def sparse(self) -> tuple[int, ...]:
        """The layers that are read from flash."""
        dense = self.dense
        return tuple(layer for layer in range(self.checkpoint.config.layers) if layer not in dense)

    def choose(self) -> text.Choose:
        """How the next token is chosen; each text has a generator of its own, from the same seed."""
        return text.sampler(self.options.temperature, self.options.seed)

    def statistics(self) -> tuple[Array | None, Array | None]:
        """The mean and the largest |C_t| of each layer and window, where they are stored."""
        if self.predictors is None:
            return None, None
        return self.predictors.mean_resident, self.predictors.largest_resident


def read_wish(options: argparse.Namespace) -> Wish:
    """The checkpoint's headers, the prompt, predictors and held-out text; a mistake is found here."""
    device = words.device(options.device)
    words.check_new_file("--save-trace", options.save_trace)
    checkpoint = open_checkpoint(options.model)
    own = checkpoint.config.activation, checkpoint.config.tau
    checkpoint = with_activation(checkpoint, options.activation)
    config = checkpoint.config
    _check_predictor(options, checkpoint)
    tokenizer = _read_tokenizer(options, config.vocabulary)
    prompt_ids = options.prompt_ids
    if prompt_ids is None:
        assert tokenizer is not None
        prompt_ids = tokenizer.encode(options.prompt)
    if options.window is not None and options.window > config.context:
        raise DomainError(
            f"--window {options.window} is longer than the context of {config.context} tokens; shorten it"
        )
    text.check_request(prompt_ids, options.tokens, config.context, config.vocabulary)
    held_out = _read_held_out(options, tokenizer, config.vocabulary)
    before = resident_bytes()
    predictors = _read_predictors(options, checkpoint)
    wish = Wish(options, device, checkpoint, own, tokenizer, prompt_ids, held_out, before, predictors)
    name = checkpoint.layers[0]["up"]
    dtype = checkpoint.tensors[name].tensors[name].dtype
    fields = tuple(bundled_layers(checkpoint, options.predictor == "gate")[0])
    planned = bundle_layout(config.neurons, config.width, dtype, fields, block_for(device))
    solve(wish, planned)  # too small a memory is refused before a long packing
    if not options.no_proof:
        _require_room_for_proof(checkpoint, planned)
    return wish


def solve(wish: Wish, layout: Layout) -> tuple[Demand, Budget]:
    """What the model asks of memory, and how the memory that is given is shared."""
    checkpoint, options = wish.checkpoint, wish.options
    on_flash = bundled_layers(checkpoint, options.predictor == "gate")
    demand = demand_of(
        {name: container.tensors[name].length for name, container in checkpoint.tensors.items()},
        {name for layer in wish.sparse for name in on_flash[layer].values()},
        predictor_bytes(wish.predictors) if wish.predictors and options.predictor == "trained" else 0,
        checkpoint.config.layers,
        layout,
        wish.dense,
    )
    return demand, solve_budget(demand, options.memory, options.window, *wish.statistics())


def _check_predictor(options: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """DomainError for a predictor that cannot be with this model, or with --no-proof."""
    activation = checkpoint.config.activation
    if options.predictor == "exact" and options.no_proof:
        raise DomainError(
            "--predictor exact needs every weight in memory, and --no-proof keeps them out; "
            "use trained predictors, or --predictor gate"
        )
    if options.predictor != "gate":
        return
    if "gate" not in checkpoint.layers[0]:
        raise DomainError(
            f"{checkpoint.directory}: its layers have no gate projection, which --predictor gate needs; "
            "use --predictor trained or exact"
        )
    if activation not in SPARSE_ACTIVATIONS:
        raise DomainError(
            f"--predictor gate needs an activation that is zero for some neurons, and {activation} is for "
            "none; add --activation fatrelu:T, such as fatrelu:0.05"
        )


def _read_tokenizer(options: argparse.Namespace, vocabulary: int) -> Tokenizer | None:
    try:
        return open_tokenizer(options.model, vocabulary)
    except DomainError as error:
        if options.prompt_ids is None or options.held_out is not None:
            raise DomainError(f"{error}; or give token ids with --prompt-ids") from None
        return None  # the ids are shown as they are


def _read_held_out(
    options: argparse.Namespace, tokenizer: Tokenizer | None, vocabulary: int
) -> list[int] | None:
    """The first tokens of the held-out text; None if there is none and none were asked for."""
    path, asked = options.held_out or options.model / words.HELD_OUT, options.perplexity_tokens
    if asked == 0:
        return None
    if asked == 1:
        raise DomainError("--perplexity-tokens 1 foresees nothing; ask for two tokens or more, or for 0")
    if options.held_out is None and (tokenizer is None or not path.is_file()):
        if asked is not None:
            what = "there is no held-out text" if tokenizer else "there is no tokenizer"
            print(f"flashref run: {path}: {what}, so no perplexity", file=sys.stderr)
        return None
    assert tokenizer is not None
    ids = tokenizer.encode(read_text(path))
    if len(ids) < 2 or max(ids) >= vocabulary:
        raise DomainError(
            f"{path}: is no text of two tokens or more in the model's vocabulary of {vocabulary}; "
            "give another with --held-out, or --perplexity-tokens 0"
        )
    return ids[: words.PERPLEXITY_TOKENS if asked is None else asked]


def _read_predictors(options: argparse.Namespace, checkpoint: Checkpoint) -> Predictors | None:
    """The trained predictors; of others only statistics are wanted: they may be missing or foreign."""
    path, config = options.predictors or options.model / FILE_NAME, checkpoint.config
    trained = options.predictor == "trained"
    try:
        if path.is_file() or options.predictors:
            found = load_predictors(path, config.layers, config.neurons, config.width)
            if not trained:
                return found._replace(layers=())
            _require_fitting(options, found, config.activation, config.tau)
            return found
    except ImageError as error:
        if trained or options.predictors:
            raise ImageError(f"{error}; or use --predictor exact") from None
    if trained:
        raise ImageError(
            f"{path}: there are no trained predictors; fit them with `flashref train`, "
            "or use the oracle with --predictor exact"
        )
    return None


def _require_fitting(options: argparse.Namespace, found: Predictors, activation: str, tau: float) -> None:
    """ImageError unless these predict the neurons of the activation that is run, in some layer."""
    path, origin = options.predictors or options.model / FILE_NAME, found.origin
    if origin is not None and (origin.activation, origin.tau) != (activation, tau):
        made = _shown_activation(origin.activation, origin.tau)
        raise ImageError(
            f"{path}: was fitted to {made}, but {_shown_activation(activation, tau)} is run; "
            "change --activation, or fit others with `flashref train`"
        )
    if all(one is None for one in found.layers):
        raise ImageError(f"{path}: has a predictor for no layer; fit others with `flashref train`")


def _shown_activation(activation: str, tau: float) -> str:
    return f"{activation}:{tau:g}" if activation == "fatrelu" else activation


def _require_room_for_proof(checkpoint: Checkpoint, layout: Layout) -> None:
    """DomainError if the weights that a proof needs, as float32 and as stored, do not fit memory."""
    config = checkpoint.config
    values = config.layers * config.neurons * config.width * len(checkpoint.layers[0])
    needed = values * (4 + STORED_DTYPES[layout.dtype].itemsize)
    available = available_bytes()
    if available is not None and needed > available:
        raise DomainError(
            f"the proof takes {needed} bytes of memory for the weights of the FFNs, and {available} are "
            "available; leave it out with --no-proof"
        )
