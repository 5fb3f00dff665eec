"""What the profile `dev` leaves out is counted, so that no test is lost by accident."""

from collections import Counter
from pathlib import Path

import pytest
from conftest import CI_ONLY

COUNTED = Path(__file__).with_name("ci_only.txt")


def test_the_tests_that_only_the_long_profiles_run_are_those_that_are_counted(request):
    """A line of ci_only.txt is a number and a file; change it together with the tests."""
    if request.config.args != request.config.getini("testpaths") or request.config.option.keyword:
        pytest.skip("only a whole collection knows what is left out")
    found = Counter(nodeid.partition("::")[0] for nodeid in request.config.stash[CI_ONLY])
    lines = [line.split() for line in COUNTED.read_text().splitlines()]
    assert dict(found) == {path: int(number) for number, path in lines}
