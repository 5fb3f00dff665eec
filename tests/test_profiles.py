"""What the profile `dev` leaves out is counted, so that no test is lost by accident; no group is empty."""

from collections import Counter
from pathlib import Path

import pytest
from conftest import CI_ONLY, ON_ONE_WORKER

COUNTED = Path(__file__).with_name("ci_only.txt")


@pytest.fixture
def session(request):
    """The session, if all tests were collected."""
    if request.config.args != request.config.getini("testpaths") or request.config.option.keyword:
        pytest.skip("only a whole collection knows what is left out")
    return request.session


def test_the_tests_that_only_the_long_profiles_run_are_those_that_are_counted(session):
    """A line of ci_only.txt is a number and a file; change it together with the tests."""
    found = Counter(nodeid.partition("::")[0] for nodeid in session.config.stash[CI_ONLY])
    lines = [line.split() for line in COUNTED.read_text().splitlines()]
    assert dict(found) == {path: int(number) for number, path in lines}


def test_each_group_of_one_worker_has_tests(session):
    """A file that gets another name would else leave its group, and nobody would notice."""
    names = [item.nodeid for item in session.items]
    starts = [start for group in ON_ONE_WORKER.values() for start in group]
    assert [start for start in starts if not any(name.startswith(start) for name in names)] == []
