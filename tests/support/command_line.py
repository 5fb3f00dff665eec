"""The command in this process: what a call gives, and the one sentence of a mistake."""

from collections import namedtuple

from flashref.cli import main

Outcome = namedtuple("Outcome", "code out err")


def called(capsys, *words):
    """Exit code, stdout and stderr of `flashref` with these words."""
    try:
        code = main([*map(str, words)])
    except SystemExit as end:
        code = end.code
    return Outcome(code, *capsys.readouterr())


def sentence_of(command, outcome):
    """The one sentence of a mistake: exit code 2, nothing on stdout, no traceback."""
    start = f"flashref {command}: "
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith(start) and outcome.err.endswith("\n"), outcome
    text = outcome.err.removeprefix(start)[:-1]
    assert "\n" not in text and "Traceback" not in text and "Error" not in text and ";" in text, outcome
    return text
