"""What to fit: ranks or a share of the model's bytes, thresholds, and the schedule of the fits."""

import math
from typing import NamedTuple

from flashref.models.budget import LARGEST_WINDOW
from flashref.models.checkpoint import Checkpoint
from flashref.types import DomainError


class FitSchedule(NamedTuple):
    """The schedule of a fit by Adam, whose learning rate falls to 0 along a cosine.

    steps: the most batches; batch: tokens in a batch; rate: the learning rate at first; seed: of the batches;
    every: steps between two measurements of the loss on held-out text; patience: the fit ends after so many
    measurements without a new best.
    """

    steps: int = 3000
    batch: int = 2048
    rate: float = 3e-3
    seed: int = 0
    every: int = 100
    patience: int = 10


class FitPlan(NamedTuple):
    """What to fit.

    ranks: one rank for each layer, or a single one for all; a layer with rank 0 is dense, and resident as a
        whole (decision 15). None: ranks are chosen, and go to the layers that gain most by them.
    share: the share of the model's bytes that the predictors may take, if ranks are chosen.
    false_negatives: the largest false negative rate, by which the threshold of each layer is chosen.
    threshold: one threshold for all layers instead, a logit, or None.
    window: the longest window whose residency is reported, in tokens.
    search, fit: the schedule by which ranks are tried, and that of the final fits.
    tokens: the most tokens of the text that are used; None takes as many as 2 GiB of hidden states hold.
    """

    ranks: tuple[int, ...] | None = None
    share: float = 0.06
    false_negatives: float = 0.048
    threshold: float | None = None
    window: int = LARGEST_WINDOW
    search: FitSchedule = FitSchedule(steps=150, batch=1024, every=50)
    fit: FitSchedule = FitSchedule()
    tokens: int | None = None

    @property
    def windows(self) -> int:
        """The longest of the windows of 1, 2, … tokens of which the predictors' file holds statistics."""
        return max(LARGEST_WINDOW, self.window)


def complete_plan(checkpoint: Checkpoint, plan: FitPlan) -> FitPlan:
    """Check a plan against a model, and give each layer its rank if the plan has ranks.

    Args:
        checkpoint: the model.
        plan: the plan to check.

    Returns:
        The plan, with as many ranks as the model has layers, or with none.

    Raises:
        DomainError: the model cannot have these ranks, or the share is too small for it.
    """
    config = checkpoint.config
    if plan.ranks is None:
        total_rank(checkpoint, plan)
        return plan
    ranks = plan.ranks * config.layers if len(plan.ranks) == 1 else plan.ranks
    if len(ranks) != config.layers:
        raise DomainError(
            f"{len(ranks)} ranks were given, but the model has {config.layers} layers; "
            "give one rank for all layers, or one for each"
        )
    largest = min(config.width, config.neurons)
    if not all(0 <= rank <= largest for rank in ranks) or not any(ranks):
        raise DomainError(
            f"the ranks must be from 0 to {largest} in a model of width {config.width} with "
            f"{config.neurons} neurons in a layer, and at least one must be above 0"
        )
    return plan._replace(ranks=ranks)


def model_bytes(checkpoint: Checkpoint) -> int:
    """The size of a checkpoint's tensors, in bytes."""
    return sum(container.tensors[name].length for name, container in checkpoint.tensors.items())


def total_rank(checkpoint: Checkpoint, plan: FitPlan) -> int:
    """The largest sum of the layers' ranks within the plan's share; every tensor of the file counts.

    Args:
        checkpoint: the model.
        plan: the plan, of which the share and the windows count.

    Returns:
        The sum of the ranks.

    Raises:
        DomainError: the share is too small for rank 1 in every layer; the message names the smallest share.
    """
    layers, neurons, whole = checkpoint.config.layers, checkpoint.config.neurons, model_bytes(checkpoint)
    of_layer = 2 * neurons + 4 + 8 * plan.windows  # bias, threshold, statistics
    of_rank = 2 * (checkpoint.config.width + neurons)
    total = int((plan.share * whole - layers * of_layer) // of_rank)
    if total < layers:
        smallest = math.ceil(10_000 * layers * (of_layer + of_rank) / whole) / 10_000
        raise DomainError(
            f"a share of {plan.share:g} of the model's {whole:,} bytes is too small for a predictor of rank "
            f"1 in each of its {layers} layers; give at least --share {smallest:g}"
        )
    return total
