"""All mutants, in the order of the checks; each module registers its own."""

from flashref.conformance.checks import CHECKS
from mutants import (  # noqa: F401
    planted_adapters,
    planted_bytes,
    planted_decode,
    planted_network,
    planted_predictor,
    planted_reads,
    planted_slots,
    planted_stdio,
    planted_weights,
    planted_window,
)
from mutants.registry import MUTANTS

MUTANTS.sort(key=lambda mutant: list(CHECKS).index(mutant.requirements[0]))
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
assert len(BY_NAME) == len(MUTANTS)
