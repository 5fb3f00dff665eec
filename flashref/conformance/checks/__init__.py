"""One check for each requirement that binds every implementation, by id."""

from collections.abc import Mapping

from flashref.conformance.checks import (
    adapter,
    bundle,
    decode,
    ffn,
    gather,
    logits,
    machine,
    plan,
    predictor,
    slots,
    stdio,
    window,
)
from flashref.conformance.checks.check import Check

_MODULES = (adapter, stdio, ffn, predictor, window, bundle, plan, gather, slots, decode, machine, logits)
CHECKS: Mapping[str, Check] = {check.requirement: check for module in _MODULES for check in module.CHECKS}
