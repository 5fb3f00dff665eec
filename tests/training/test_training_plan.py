"""The ranks that a plan of training asks for, and those that its share of the model pays for."""

import math

import pytest
import train_runs
from random_models import LAYERS, NEURONS, WIDTH
from safetensors.numpy import load_file

from flashref.models.checkpoint import open_checkpoint
from flashref.training import plan
from flashref.types import DomainError

small = train_runs.small


def test_the_smallest_share_that_is_named_is_the_smallest(small):
    checkpoint = open_checkpoint(small)
    with pytest.raises(DomainError) as caught:
        plan.complete_plan(checkpoint, plan.FitPlan(share=0.001))
    smallest = float(str(caught.value).split("give at least --share ")[1])
    whole = sum(array.nbytes for array in load_file(small / "model.safetensors").values())
    of_layer = 2 * (WIDTH + NEURONS) + 2 * NEURONS + 4 + 8 * 5  # rank 1, bias, threshold, statistics
    assert smallest == math.ceil(10_000 * LAYERS * of_layer / whole) / 10_000  # rounded up to 0.01 %
    assert plan.total_rank(checkpoint, plan.FitPlan(share=smallest)) == LAYERS
    with pytest.raises(DomainError, match=r"too small .* give at least --share"):
        plan.complete_plan(checkpoint, plan.FitPlan(share=smallest - 0.0001))


def test_ranks_that_a_share_pays_for_and_that_a_layer_can_have(small):
    checkpoint = open_checkpoint(small)
    whole = sum(array.nbytes for array in load_file(small / "model.safetensors").values())
    of_layers = LAYERS * (2 * NEURONS + 4 + 8 * 5)  # bias, threshold, statistics
    for rank in (3, 7, 31):
        pays = of_layers + rank * 2 * (WIDTH + NEURONS)
        for spare, found in ((0.5, rank), (-0.5, rank - 1)):
            assert plan.total_rank(checkpoint, plan.FitPlan(share=(pays + spare) / whole)) == found
    for ranks in ((0, 16), (16, 0), (1, 16)):
        plan.complete_plan(checkpoint, plan.FitPlan(ranks=ranks))
    for ranks in ((0, 0), (17, 1), (-1, 1)):
        with pytest.raises(DomainError, match="the ranks must be from 0 to 16"):
            plan.complete_plan(checkpoint, plan.FitPlan(ranks=ranks))
