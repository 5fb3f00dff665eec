"""The kit tests itself: the reference passes, wrong implementations are caught, correct ones pass."""

import sys
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
from conftest import PROFILE, sampled
from mutants import correct  # noqa: F401
from mutants.planted import BY_NAME, MUTANTS
from mutants.registry import OF_CALLS, VARIANTS, caught, checks_of, quickly, verdict_on
from random_models import LAYERS, NEURONS, WIDTH, random_weights, write_model

from flashref.bounds import predictor_bound
from flashref.conformance import reference
from flashref.conformance.adapter import OPERATIONS
from flashref.conformance.checks import CHECKS, logits, stdio
from flashref.conformance.judging import runner
from flashref.conformance.judging.verdict import PASS, UNSUPPORTED
from flashref.conformance.requirements import requirements
from flashref.conformance.transport.stdio import Command
from flashref.conformance.transport.subject import InProcess
from flashref.models.origin import Origin, Source
from flashref.models.predictors import FILE_NAME, load_predictors, save_predictors
from flashref.types import widen

EVERY_CHECK = [pytest.param(name, marks=pytest.mark.req(name)) for name in OF_CALLS]


def subject_of(requirement):
    """The reference in this process; behind the protocol, where that is what is judged."""
    if requirement in {check.requirement for check in stdio.CHECKS}:
        return Command([sys.executable, "-m", "flashref.conformance", "flashref.conformance.reference"])
    return nullcontext(InProcess(reference))


def test_a_layer_without_a_predictor_is_dense_in_the_reference_and_in_what_judges_it(tmp_path):
    folder = write_model(tmp_path, random_weights(), predictors=False)
    trained = load_predictors(write_model(tmp_path, random_weights()) / FILE_NAME, LAYERS, NEURONS, WIDTH)
    (tmp_path / FILE_NAME).unlink()
    nowhere = Source("0" * 64, ())
    origin = Origin("0" * 64, "relu", 0.0, nowhere, nowhere, nowhere)
    save_predictors(tmp_path / FILE_NAME, trained._replace(layers=(None, trained.layers[1]), origin=origin))
    ids = np.arange(5)
    found, counters = reference.logits(str(folder), ids, "trained")
    exact, own = logits.exact_and_own(str(folder), ids, "trained")
    assert np.abs(found - exact).max() <= logits.TIMES * np.abs(own - exact).max()
    assert (counters["loaded"] + counters["bypassed"])[0, 0] == NEURONS


@pytest.mark.parametrize("requirement", EVERY_CHECK)
def test_the_reference_passes_every_check(requirement):
    with subject_of(requirement) as subject:
        how = runner.profile_settings(PROFILE, 10 if PROFILE == "dev" else None)
        verdict = runner.examine(CHECKS[requirement], subject, how)
    assert verdict.kind == PASS, verdict.text
    assert verdict.cases > 0


FIRST = {mutant.requirements[0]: mutant.name for mutant in reversed(MUTANTS)}  # one for each check
AGAIN = list(BY_NAME)[::10]


@pytest.mark.parametrize("name", sampled(BY_NAME, FIRST.values()))
def test_a_mutant_is_caught_by_the_check_of_what_it_breaks(name):
    mutant = BY_NAME[name]
    verdict = verdict_on(mutant.adapter, mutant.requirements[0], quickly("ci"))
    assert caught(verdict), f"{name} survives {mutant.requirements[0]}: {verdict.kind} {verdict.text}"


@pytest.mark.parametrize("name", VARIANTS)
def test_no_check_rejects_a_correct_variant(name):
    """`nightly` asks every check. The others ask each nth, from another one on for each variant."""
    nth = {"dev": 24, "ci": 4, "nightly": 1}[PROFILE]
    checks = checks_of(VARIANTS[name])
    for requirement in checks[list(VARIANTS).index(name) % nth :: nth]:
        verdict = verdict_on(VARIANTS[name], requirement, quickly("dev", examples=10))
        assert verdict.kind in (PASS, UNSUPPORTED), f"{requirement}: {verdict.text}"


def test_every_check_has_a_mutant_that_it_must_catch():
    assert set(CHECKS) - {mutant.requirements[0] for mutant in MUTANTS} == set()


def test_mutants_break_requirements_that_have_a_check():
    assert {name for mutant in MUTANTS for name in mutant.requirements} - set(CHECKS) == set()


def test_every_requirement_that_binds_others_has_a_check():
    binding = {name for name, of in requirements().items() if of.testable and not of.reference_only}
    assert binding - set(CHECKS) == set()


def test_no_check_is_for_what_binds_nobody_else():
    binding = {name for name, of in requirements().items() if of.testable and not of.reference_only}
    assert set(CHECKS) - binding == set()


TWICE = ["FFN-5", "PRD-5", "WIN-9", "GTH-1", "DEC-7"]


@pytest.mark.parametrize("requirement", sampled(TWICE, TWICE[:4]))
def test_the_verdict_is_the_same_the_second_time(requirement):
    first, second = (verdict_on(lambda: reference, requirement, quickly("dev", 10)) for _ in range(2))
    assert (first.kind, first.cases) == (second.kind, second.cases)


@pytest.mark.parametrize("name", sampled(AGAIN, AGAIN[::7]))
def test_a_mutant_is_caught_by_the_same_case_the_second_time(name):
    mutant = BY_NAME[name]
    first, second = (verdict_on(mutant.adapter, mutant.requirements[0], quickly("ci")) for _ in range(2))
    assert first._replace(seconds=0) == second._replace(seconds=0)


def test_a_warning_is_no_answer():
    class Warns:
        unsupported = dict.fromkeys([name for name in OPERATIONS if name != "read_plan"], "not here")

        def read_plan(self, extents, block, max_gap):
            np.float32(1) / np.float32(0)
            warnings.warn("slow path", RuntimeWarning, stacklevel=1)
            return extents

    extents = np.array([[0, 64]])
    assert InProcess(Warns()).call("read_plan", extents, 64, 0).tolist() == [[0, 64]]


def test_a_large_failing_case_is_a_failure_and_no_defect_of_the_kit():
    mutant = BY_NAME["accumulates in fp16"]
    verdict = runner.examine(CHECKS["FFN-2"], InProcess(mutant.adapter()), quickly("ci"))
    assert verdict.kind == "fail"


def test_no_trained_predictor_decides_dec_11_s_texts_within_rounding():
    # predictor_bound is the worst order's error; the eighth of it is far beyond what float32 shows here.
    for call in logits.texts(InProcess(reference).facts):
        model_dir, token_ids, _ = call.arguments
        model = logits.loaded(model_dir)

        def feed_forward(layer, x, model=model):
            a, b, bias, threshold = model.predictors[layer]
            z = widen(b).astype(np.float64) @ (widen(a).astype(np.float64) @ x)
            z = z if bias is None else z + widen(bias)
            single = x.astype(np.float32)
            assert np.all(np.abs(z - threshold) > predictor_bound(single, model.predictors[layer]) / 8)
            return logits.float64_ffn(x, model.ffns[layer], np.flatnonzero(z > threshold))

        logits.logits_of(model.double, token_ids, feed_forward)
