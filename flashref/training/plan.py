"""What to fit, in plain numbers: ranks or a share of the model's bytes, thresholds, steps."""

import math
from typing import NamedTuple

from flashref.models.budget import LARGEST_WINDOW
from flashref.models.checkpoint import Checkpoint
from flashref.types import DomainError


class Fit(NamedTuple):
    """How long and how fast to fit: Adam whose rate falls to 0 by a cosine, over at most `steps` batches.

    every: steps between two measurements of the loss on held-out text; patience: measurements without a
    new best before it ends.
    """

    steps: int = 3000
    batch: int = 2048
    rate: float = 3e-3
    seed: int = 0
    every: int = 100
    patience: int = 10


class Plan(NamedTuple):
    """What to fit.

    ranks: one for each layer, or a single one for all; 0 leaves a layer dense (decision 15: it is resident
    whole). None: the share of the model's bytes pays for ranks, and they go to the layers that gain most.
    false_negatives: the share of the active neurons that thresholds, chosen for each layer, may miss.
    threshold: one logit for all layers instead, or None.
    window: tokens of the window whose residency is reported.
    tokens: of the text, at most; None takes as many as 2 GiB of hidden states hold.
    search, fit: how ranks are tried, and how predictors of the chosen ranks are fitted.
    """

    ranks: tuple[int, ...] | None = None
    share: float = 0.06
    false_negatives: float = 0.048
    threshold: float | None = None
    window: int = LARGEST_WINDOW
    search: Fit = Fit(steps=150, batch=1024, every=50)
    fit: Fit = Fit()
    tokens: int | None = None

    @property
    def windows(self) -> int:
        """How many windows, of 1, 2, … tokens, the file has statistics of."""
        return max(LARGEST_WINDOW, self.window)


def complete_plan(checkpoint: Checkpoint, plan: Plan) -> Plan:
    """The plan with a rank for each layer, if it has ranks at all, and nothing that this model cannot have.

    Raises:
        DomainError: the ranks or the share do not suit the model.
    """
    config = checkpoint.config
    if plan.ranks is None:
        total_rank(checkpoint, plan)
        return plan
    ranks = plan.ranks * config.layers if len(plan.ranks) == 1 else plan.ranks
    if len(ranks) != config.layers:
        raise DomainError(
            f"{len(ranks)} ranks were given, but the model has {config.layers} layers; "
            "give one for all, or one each"
        )
    largest = min(config.width, config.neurons)
    if not all(0 <= rank <= largest for rank in ranks) or not any(ranks):
        raise DomainError(
            f"ranks must lie in 0 … {largest} in a model of width {config.width} and {config.neurons} "
            "neurons, and one must be above 0"
        )
    return plan._replace(ranks=ranks)


def model_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the checkpoint's tensors."""
    return sum(container.tensors[name].length for name, container in checkpoint.tensors.items())


def total_rank(checkpoint: Checkpoint, plan: Plan) -> int:
    """The sum of the layers' ranks that the share pays for: all that a file of predictors holds counts.

    Raises:
        DomainError: the share does not pay for rank 1 in every layer; the smallest that does is named.
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
