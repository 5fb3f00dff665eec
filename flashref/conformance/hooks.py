"""What pytest calls once an implementation is named: it is loaded for the suite, and its verdicts counted."""

import contextlib
import json
import shlex
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashref.conformance import suite
from flashref.conformance.adapter import load_adapter
from flashref.conformance.checks import CHECKS, checks_named
from flashref.conformance.judging.deviations import in_force, read_deviations
from flashref.conformance.judging.judge import opened
from flashref.conformance.judging.report import Report
from flashref.conformance.judging.runner import profile_settings
from flashref.conformance.judging.verdict import NOT_RUN, Verdict
from flashref.conformance.transport.process import split_command
from flashref.conformance.vectors.published import shipped_vectors

SUITE = suite.__name__
KEY = "flashref_verdict"  # of a report, on its way from a worker of pytest-xdist


class Hooks:
    """The implementation, held from the collection of the suite to the end; in each process that collects."""

    def __init__(self, config: pytest.Config) -> None:
        self.options = {
            name: config.getoption(f"--flashref-{name}")
            for name in ("adapter", "command", "deviations", "profile", "examples", "report")
        }
        adapter, command = self.options["adapter"], self.options["command"]
        self.target = shlex.quote(adapter) if command is None else f"--command {shlex.quote(command)}"
        self.is_worker = hasattr(config, "workerinput")
        self.verdicts: dict[int, Verdict] = {}  # place in the suite → verdict
        self.facts = ("", "")  # name and version, as the reports bring them
        self._resources = contextlib.ExitStack()
        self._check()

    def tests(self) -> Iterator[suite.Test]:
        """Every test, in the order of the chapters. Raises FlashrefError for what cannot be loaded."""
        options, vectors = self.options, shipped_vectors()
        named = options["deviations"]
        entries = () if named is None else read_deviations(Path(named), CHECKS, vectors)
        adapter, command = options["adapter"], options["command"]
        implementation = split_command(command) if adapter is None else load_adapter(adapter)
        subject = self._resources.enter_context(opened(implementation))
        self.facts = subject.facts.name, subject.facts.version
        how = profile_settings(options["profile"], options["examples"])
        deviations = in_force(entries, subject.facts.version)
        return suite.suite_tests(checks_named(None), list(vectors.values()), subject, how, deviations)

    def pytest_pycollect_makemodule(
        self, module_path: Path, parent: pytest.Collector
    ) -> pytest.Module | None:
        """The suite, named as a module: its ids, and Hypothesis' keys, are the same on every machine."""
        if module_path != Path(suite.__file__):
            return None
        made: suite.Suite = suite.Suite.from_parent(parent, path=module_path, nodeid=SUITE)
        made.target, made.load = self.target, self.tests
        return made

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """The verdict travels with the report."""
        report = yield
        if isinstance(item, suite.SuiteTest) and report.when == "call" and item.verdict is not None:
            sent = item.verdict._replace(skipped=dict(item.verdict.skipped))  # xdist sends plain types only
            setattr(report, KEY, [item.place, *self.facts, *sent])
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The verdict has arrived; a test that failed without one was ended by something else."""
        if sent := getattr(report, KEY, None):
            self.facts = sent[1], sent[2]
            self.verdicts[sent[0]] = Verdict(*sent[3:])
        elif report.failed and report.nodeid.startswith(f"{SUITE}::"):
            kind = NOT_RUN if report.when in ("setup", "teardown") else "crashes"
            name = report.nodeid.partition("[")[2].removesuffix("]")
            text = report.longreprtext.strip().partition("\n")[0]
            self.verdicts[10**6 + len(self.verdicts)] = Verdict(name, kind, text, 0, 0.0)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The count, as `flashref conformance` prints it."""
        if self.verdicts:
            terminalreporter.section(" ".join(self.facts))
            terminalreporter.write_line(self._report().summary)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The report, from the process that has seen all; a run that judged nothing has not passed."""
        if self.is_worker:
            return
        report = self._report()
        if not report.judged:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.options["report"] is not None:
            text = json.dumps(report.as_json(), indent=2) + "\n"
            Path(self.options["report"]).write_text(text, encoding="utf-8")

    def pytest_unconfigure(self) -> None:
        """The command's process ends."""
        self._resources.close()

    def _check(self) -> None:
        """UsageError for options that cannot be."""
        options = self.options
        if options["adapter"] is not None and options["command"] is not None:
            raise pytest.UsageError("name --flashref-adapter or --flashref-command, and not both")
        if options["examples"] is not None and options["examples"] < 1:
            raise pytest.UsageError(f"--flashref-examples must be at least 1, not {options['examples']}")
        report = options["report"]
        if report is not None and (Path(report).is_dir() or not Path(report).absolute().parent.is_dir()):
            raise pytest.UsageError(f"--flashref-report {report}: cannot be written; name a file in a folder")

    def _report(self) -> Report:
        """The verdicts that have arrived, in the order of the suite."""
        verdicts, vectors = list[Verdict](), dict[str, list[Verdict]]()
        for _, verdict in sorted(self.verdicts.items()):
            operation, slash, _ = verdict.requirement.partition("/")
            (vectors.setdefault(operation, []) if slash else verdicts).append(verdict)
        return Report(*self.facts, self.options["profile"], self.target, verdicts, vectors)
