"""All mutants; each module registers its own."""

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

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
assert len(BY_NAME) == len(MUTANTS)
