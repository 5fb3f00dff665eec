"""Mutants and correct variants by name, and the verdict of a check on one of them."""

import re
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

from hypothesis import Phase, settings

from flashref.conformance.adapter import OPERATIONS, AdapterError
from flashref.conformance.checks import CHECKS, stdio
from flashref.conformance.judging import runner
from flashref.conformance.judging.verdict import GOOD, KIT_ERROR, NOT_RUN, Verdict
from flashref.conformance.transport.stdio import Command
from flashref.conformance.transport.subject import InProcess
from mutants.adapters import Decoder, Engine, Speaker
from mutants.engine import Chooser, Network, Table, Window
from mutants.storage import Flash, Planner

# Place in the engine → the part that is there, and the operations that it has a hand in.
PARTS = {
    "network": (Network, ("dense_ffn", "sparse_ffn", "run_decode", "logits")),
    "predictor": (Chooser, ("predict_active", "run_decode", "logits")),
    "window": (Window, ("run_window", "run_decode", "logits")),
    "table": (Table, ("run_slots", "run_decode")),
    "planner": (Planner, ("read_plan", "gather_rows", "run_decode")),
    "flash": (Flash, ("bundle_layout", "pack_bundles", "unpack_bundles", "gather_rows", "run_decode")),
    "decoder": (Decoder, ("run_decode",)),
    "speaker": (Speaker, ("logits",)),
}
# Of messages only commands can be judged.
OF_CALLS = [name for name in CHECKS if name not in {check.requirement for check in stdio.CHECKS}]


class Mutant(NamedTuple):
    """One wrong implementation.

    bug: the class of real bugs that it stands for; requirements: what it breaks (the check of the first must
    catch it); adapter: makes a fresh one.
    """

    name: str
    bug: str
    requirements: tuple[str, ...]
    adapter: Callable[[], object]


MUTANTS: list[Mutant] = []
VARIANTS: dict[str, Callable[[], object]] = {}


def plant(bug, *requirements):
    """Registers a wrong part of the engine, or a wrong engine; its class is its name."""

    def register(wrong):
        MUTANTS.append(Mutant(in_words(wrong.__name__), bug, requirements, engine_with(wrong)))
        return wrong

    return register


def correct(right):
    """Registers another correct part of the engine, or a correct engine."""
    VARIANTS[in_words(right.__name__)] = engine_with(right)
    return right


def in_words(name):
    """EvictsOneTokenEarly → evicts one token early; fp16 and float64 stay one word."""
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", name).lower()
    return re.sub(r"(?<![fb]p)(?<!bf)(?<!float)(?<=[a-z])(?=\d)", " ", words)


def engine_with(part):
    """The engine with this part in the place of its own."""
    if issubclass(part, Engine):
        return part
    [(place, touched)] = [(place, of) for place, (base, of) in PARTS.items() if issubclass(part, base)]
    parts = {place: part, "touched": touched, "__doc__": part.__doc__}
    if place == "planner":
        parts["flash"] = type("PlannedFlash", (Flash,), {"planner": part})
    return type(part.__name__, (Engine,), parts)


def checks_of(adapter):
    """The checks that ask an operation in which the adapter's own part has a hand; of a whole engine, all."""
    touched = getattr(adapter, "touched", OPERATIONS)
    return [name for name in OF_CALLS if set(CHECKS[name].operations) & set(touched)]


def quickly(profile, examples=None):
    """The kit's own settings, without making a failure smaller: here it is only to be found."""
    how = runner.profile_settings(profile)
    return settings(how, phases=[Phase.explicit, Phase.generate], max_examples=examples or how.max_examples)


def verdict_on(adapter, requirement, how):
    """The kit's verdict on a fresh adapter. What cannot even be loaded has failed IOP-1."""
    begin = time.perf_counter()
    try:
        made = adapter()
        subject = made if isinstance(made, Command) else InProcess(made)
    except AdapterError as error:
        kind = "fail" if requirement == "IOP-1" else NOT_RUN
        return Verdict(requirement, kind, str(error), 0, time.perf_counter() - begin)
    with warnings.catch_warnings(), made if isinstance(made, Command) else nullcontext():
        warnings.simplefilter("ignore")  # overflow in wrong arithmetic, long reprs of a failure
        return runner.examine(CHECKS[requirement], subject, how)


def caught(verdict):
    """Whether the check noticed: it failed, or the adapter misbehaved."""
    return verdict.kind not in (*GOOD, NOT_RUN, KIT_ERROR)
