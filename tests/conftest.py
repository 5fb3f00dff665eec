"""Profiles of Hypothesis, and the record of which requirement is tested where."""

import os

import pytest
from hypothesis import settings

settings.register_profile("dev", max_examples=30, deadline=None)
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, database=None, print_blob=True
)
settings.register_profile("nightly", max_examples=2000, deadline=None, stateful_step_count=100)
settings.load_profile(os.getenv("HYPOTHESIS_PROFILE", "ci" if os.getenv("CI") else "dev"))

CITED = pytest.StashKey[dict[str, list[str]]]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep every cited requirement, with the tests that cite it, for test_spec.py."""
    cited: dict[str, list[str]] = {}
    for item in items:
        for mark in item.iter_markers("req"):
            for requirement in mark.args:
                cited.setdefault(requirement, []).append(item.nodeid)
    config.stash[CITED] = cited
