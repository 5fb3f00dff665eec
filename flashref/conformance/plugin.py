"""pytest's options `--flashref-…`. Every project that installs flashref imports this, so it imports nothing.

`pytest --pyargs flashref.conformance.suite --flashref-adapter package.module:attribute`
"""

import pytest

SUITE = "flashref.conformance.suite"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, and nothing else."""
    group = parser.getgroup("flashref", 'conformance with "LLM in a flash" (flashref)')
    add = group.addoption
    add("--flashref-adapter", metavar="ADAPTER", help=f"module or module:attribute that {SUITE} judges")
    add(
        "--flashref-command",
        metavar="LINE",
        help="instead of an adapter: a command that speaks the stdio protocol (flashref spec 96)",
    )
    add(
        "--flashref-deviations",
        metavar="FILE",
        help="TOML file that lists where the implementation differs on purpose",
    )
    add(
        "--flashref-profile",
        choices=("dev", "ci", "nightly"),
        default="ci",
        help="draw 30, 100 or 2000 cases for a requirement (default: ci); nightly never draws the same",
    )
    add(
        "--flashref-examples",
        metavar="N",
        type=int,
        help="draw N cases for each requirement instead, for campaigns of any length",
    )
    add("--flashref-report", metavar="FILE", help="write the verdicts as JSON into this file")


def pytest_configure(config: pytest.Config) -> None:
    """The suite's hooks, if an implementation is named; a mistake is one sentence (pytest.UsageError)."""
    adapter, command = (config.getoption(f"--flashref-{name}") for name in ("adapter", "command"))
    if adapter is not None or command is not None:
        try:
            from flashref.conformance.hooks import Hooks  # here: it needs Hypothesis
        except ModuleNotFoundError as error:
            from flashref.types import MissingExtra  # here: it needs NumPy

            missing = MissingExtra(f"the conformance kit needs {error.name}", "test")
            raise pytest.UsageError(str(missing)) from error
        config.pluginmanager.register(Hooks(config), "flashref-conformance")
    elif any(_is_suite(word.partition("::")[0]) for word in config.args):
        raise pytest.UsageError(
            "name what to judge: --flashref-adapter MODULE:ATTRIBUTE, or --flashref-command 'PROGRAM'"
        )


def _is_suite(word: str) -> bool:
    return word == SUITE or word.replace("\\", "/").endswith("/flashref/conformance/suite.py")
