"""What to fit: ranks or a share of the model's bytes, and how thresholds are found; checked before work."""

import math
from typing import NamedTuple

from flashref.models.checkpoint import Checkpoint
from flashref.training.fitting import Fit
from flashref.types import DomainError


class Plan(NamedTuple):
    """What to fit.

    ranks: one a layer, 0 for a dense layer (decision 15); None: as many as a share of the model's bytes pays
    for, each layer as many as serve all best. false_negatives: share of the active that thresholds may miss;
    threshold: one logit for all layers instead, or None. windows: 1, 2, … tokens that are counted.
    search: how ranks are tried; fit: how the chosen ones are fitted.
    """

    ranks: tuple[int, ...] | None = None
    share: float = 0.06
    false_negatives: float = 0.048
    threshold: float | None = None
    windows: int = 5
    search: Fit = Fit(steps=150, batch=1024, every=50)
    fit: Fit = Fit()


def check_plan(checkpoint: Checkpoint, plan: Plan) -> None:
    """DomainError for ranks or a share that this model cannot have."""
    config = checkpoint.config
    if plan.ranks is None:
        total_rank(checkpoint, plan)
        return
    if len(plan.ranks) != config.layers:
        raise DomainError(
            f"{len(plan.ranks)} ranks were given, but the model has {config.layers} layers; "
            "give one for all, or one each"
        )
    largest = min(config.width, config.neurons)
    if not all(0 <= rank <= largest for rank in plan.ranks) or not any(plan.ranks):
        raise DomainError(
            f"ranks must lie in 0 … {largest} in a model of width {config.width} and {config.neurons} "
            "neurons, and one must be above 0"
        )


def model_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the checkpoint's tensors."""
    return sum(container.tensors[name].length for name, container in checkpoint.tensors.items())


def total_rank(checkpoint: Checkpoint, plan: Plan) -> int:
    """The sum of the layers' ranks that the share pays for: all that a file of them holds counts.

    Raises DomainError naming the smallest share, if it does not pay for rank 1 in every layer.
    """
    layers, neurons, whole = checkpoint.config.layers, checkpoint.config.neurons, model_bytes(checkpoint)
    of_layer = 2 * neurons + 4 + 8 * plan.windows  # bias, threshold, statistics
    of_rank = 2 * (checkpoint.config.width + neurons)
    total = int((plan.share * whole - layers * of_layer) // of_rank)
    if total < layers:
        smallest = math.ceil(10_000 * layers * (of_layer + of_rank) / whole) / 10_000
        raise DomainError(
            f"{plan.share:g} of the model's {whole} bytes do not pay for a predictor of rank 1 in each of "
            f"its {layers} layers; the smallest share that does is {smallest:g}"
        )
    return total
