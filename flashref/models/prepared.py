"""The request for a model, and what is read from its small files before anything is packed."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from flashref.bundle import Layout, bundle_layout
from flashref.decode import Place, Semantics, sum_predicted, sum_resident
from flashref.ffn import SPARSE_ACTIVATIONS
from flashref.models.budget import Amount, Budget, Demand, demand_of, solve_budget
from flashref.models.checkpoint import Checkpoint, open_checkpoint, shown_activation, with_activation
from flashref.models.memory import available_bytes, resident_bytes
from flashref.models.pack import block_for, bundled_layers
from flashref.models.predictors import FILE_NAME, Predictors, load_predictors, predictor_bytes
from flashref.models.sizes import two_sizes
from flashref.models.tokens import Tokenizer, open_tokenizer
from flashref.slots import fill_holes, swap_with_last
from flashref.storage.device import Device
from flashref.types import STORED_DTYPES, Array, DomainError, Ids, ImageError, Vector

T = TypeVar("T")
PredictLayer = Callable[[int, Vector], Ids]  # a layer and what its up projection receives to neurons' ids

PREDICTORS = ("trained", "exact", "gate")
READERS = ("memory", "direct")
SEMANTICS: dict[str, Semantics] = {"resident": sum_resident, "predicted": sum_predicted}
PLACEMENTS: dict[str, Place] = {"swap_with_last": swap_with_last, "fill_holes": fill_holes}


class ModelRequest(NamedTuple):
    """How a model is to be run; each field is an argument of `open_model`, checked and resolved.

    Attributes:
        memory: a share of the model's bytes, or an Amount of bytes.
        window: the number of tokens whose predicted neurons stay in memory; None: the largest number up to 5
            for which the memory is enough on average.
        predictor: "trained", "exact", "gate", or a function.
        predictors: the file with the trained predictors; None: the one in the model's folder.
        semantics: chooses the neurons that are summed.
        placement: places the rows in the DRAM matrix.
        device: its times are simulated, and its queue depth is used.
        reader: "memory" or "direct".
        image: the image that is used, or packed and kept; None: one in a temporary folder.
        activation: replaces the model's own, with its tau; None: the model's own.
        proof: whether all weights are kept in memory too, so that every step is checked with them.
    """

    memory: float | Amount
    window: int | None
    predictor: str | PredictLayer
    predictors: Path | None
    semantics: Semantics
    placement: Place
    device: Device
    reader: str
    image: Path | None
    activation: tuple[str, float] | None
    proof: bool


class Prepared(NamedTuple):
    """A request, and what was read from the small files that it names.

    Attributes:
        request: how the model is to be run.
        checkpoint: the checkpoint; its config has the activation that is run.
        own_activation: the activation that the model came with, and its tau.
        tokenizer: None where the model has none; then token ids must be given.
        predictors: the trained predictors; only their statistics where other predictors are used; None where
            there is no file.
        memory_before: the bytes that the process had in memory before the predictors were read.
    """

    request: ModelRequest
    checkpoint: Checkpoint
    own_activation: tuple[str, float]
    tokenizer: Tokenizer | None
    predictors: Predictors | None
    memory_before: int

    @property
    def dense(self) -> tuple[int, ...]:
        """The layers without a predictor, which are resident whole (decision 15: they are never on flash)."""
        if self.request.predictor != "trained" or self.predictors is None:
            return ()
        return tuple(layer for layer, one in enumerate(self.predictors.layers) if one is None)

    @property
    def sparse(self) -> tuple[int, ...]:
        """The layers that are read from flash."""
        dense = self.dense
        return tuple(layer for layer in range(self.checkpoint.config.layers) if layer not in dense)

    @property
    def statistics(self) -> tuple[Array | None, Array | None]:
        """The mean and the largest |C_t|, (layers, windows) each; None where no predictors file has them."""
        if self.predictors is None:
            return None, None
        return self.predictors.mean_resident, self.predictors.largest_resident


def prepare(folder: Path, request: ModelRequest) -> Prepared:
    """Read the headers, the tokenizer and the predictors of a model, and check that the request can be met.

    Args:
        folder: the folder of a Hugging Face checkpoint.
        request: how the model is to be run.

    Returns:
        The request with what was read. No file stays open.

    Raises:
        ImageError, ShapeError: a file is missing, is damaged, or belongs to another model.
        DomainError: the model is not supported, the memory is too small, or two parts of the request exclude
            each other.
    """
    checkpoint = open_checkpoint(folder)
    own_activation = checkpoint.config.activation, checkpoint.config.tau
    checkpoint = with_activation(checkpoint, request.activation)
    config = checkpoint.config
    _check_predictor(request, checkpoint)
    if request.window is not None and request.window > config.context:
        raise DomainError(
            f"a window of {request.window} is longer than the context of {config.context} tokens; shorten it"
        )
    try:
        tokenizer = open_tokenizer(folder, config.vocabulary)
    except DomainError:
        tokenizer = None  # `encode` raises this error again, once there is a text
    memory_before = resident_bytes()
    predictors = _read_predictors(request, checkpoint)
    prepared = Prepared(request, checkpoint, own_activation, tokenizer, predictors, memory_before)
    name = checkpoint.layers[0]["up"]
    dtype = checkpoint.tensors[name].tensors[name].dtype
    fields = tuple(bundled_layers(checkpoint, request.predictor == "gate")[0])
    planned = bundle_layout(config.neurons, config.width, dtype, fields, block_for(request.device))
    solve(prepared, planned)  # too small a memory is refused before a long packing
    if request.proof:
        _require_room_for_proof(checkpoint, planned)
    return prepared


def solve(prepared: Prepared, layout: Layout) -> tuple[Demand, Budget]:
    """Solve the memory budget of a model.

    Args:
        prepared: the model and its request.
        layout: the layout of the bundles of any layer.

    Returns:
        What must always be in memory, and the window and the rows on which the rest is spent.

    Raises:
        DomainError: the memory is too small; the message names the smallest that works.

    Decision 8: layers get rows in proportion to the neurons that their windows keep.
    """
    checkpoint, request = prepared.checkpoint, prepared.request
    on_flash = bundled_layers(checkpoint, request.predictor == "gate")
    trained = prepared.predictors is not None and request.predictor == "trained"
    demand = demand_of(
        {name: container.tensors[name].length for name, container in checkpoint.tensors.items()},
        {name for layer in prepared.sparse for name in on_flash[layer].values()},
        predictor_bytes(prepared.predictors) if trained and prepared.predictors else 0,
        checkpoint.config.layers,
        layout,
        prepared.dense,
    )
    return demand, solve_budget(demand, request.memory, request.window, *prepared.statistics)


def chosen(what: str, choices: dict[str, T], choice: str | T) -> T:
    """Find the function that has a name.

    Args:
        what: what is chosen, for the message.
        choices: functions by name.
        choice: one of these names; or a function, which is returned as it is.

    Raises:
        DomainError: there is no such name.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in choices:
        raise DomainError(f"{what} {choice!r} is unknown; use one of {', '.join(choices)}")
    return choices[choice]


def encode(prepared: Prepared, text: str) -> list[int]:
    """Turn a text into token ids.

    Args:
        prepared: the model.
        text: the text.

    Raises:
        DomainError: the model has no tokenizer, or the text cannot be written as UTF-8.
    """
    if prepared.tokenizer is not None:
        return prepared.tokenizer.encode(text)
    try:
        return open_tokenizer(prepared.checkpoint.directory, prepared.checkpoint.config.vocabulary).encode(
            text
        )
    except DomainError as error:
        raise DomainError(f"{error}; or give token ids with --prompt-ids") from None


def _check_predictor(request: ModelRequest, checkpoint: Checkpoint) -> None:
    """Raise DomainError for a predictor that cannot be used with this model, or without a proof."""
    activation = checkpoint.config.activation
    if request.predictor == "exact" and not request.proof:
        raise DomainError(
            "--predictor exact needs every weight in memory, and --no-proof keeps them out; "
            "use trained predictors, or --predictor gate"
        )
    if request.predictor != "gate":
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


def _read_predictors(request: ModelRequest, checkpoint: Checkpoint) -> Predictors | None:
    """Read the trained predictors; where others are used, only their statistics, which may be missing."""
    path, config = request.predictors or checkpoint.directory / FILE_NAME, checkpoint.config
    trained = request.predictor == "trained"
    try:
        if path.is_file() or request.predictors:
            found = load_predictors(path, config.layers, config.neurons, config.width)
            if not trained:
                return found._replace(layers=())
            _require_fitting(found, path, checkpoint)
            return found
    except ImageError as error:
        if trained or request.predictors:
            raise ImageError(f"{error}; or use --predictor exact") from None
    if trained:
        raise ImageError(
            f"{path}: there are no trained predictors; fit them with `flashref train`, "
            "or compute the active neurons with --predictor exact"
        )
    return None


def _require_fitting(found: Predictors, path: Path, checkpoint: Checkpoint) -> None:
    """Raise ImageError unless these predictors are for the activation that is run, and for some layer."""
    origin, run = found.origin, (checkpoint.config.activation, checkpoint.config.tau)
    if origin is not None and (origin.activation, origin.tau) != run:
        made = shown_activation(origin.activation, origin.tau)
        raise ImageError(
            f"{path}: was fitted to {made}, but {shown_activation(*run)} is run; "
            "change --activation, or fit others with `flashref train`"
        )
    if all(one is None for one in found.layers):
        raise ImageError(f"{path}: has no predictor for any layer; fit others with `flashref train`")


def _require_room_for_proof(checkpoint: Checkpoint, layout: Layout) -> None:
    """Raise DomainError if the proof's weights, as float32 and as they are stored, do not fit into memory."""
    config = checkpoint.config
    values = config.layers * config.neurons * config.width * len(checkpoint.layers[0])
    needed = values * (4 + STORED_DTYPES[layout.dtype].itemsize)
    available = available_bytes()
    if available is not None and needed > available:
        taken, free = two_sizes(needed, available)
        raise DomainError(
            f"the proof takes {taken} of memory for the weights of the FFNs, but {free} are available; "
            "leave it out with --no-proof"
        )
