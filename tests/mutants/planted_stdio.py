"""Servers that speak the protocol wrongly, as commands."""

import sys
from functools import partial
from pathlib import Path

from flashref.conformance.transport.stdio import Command
from mutants.registry import MUTANTS, Mutant

SERVER = Path(__file__).parents[1] / "adapters" / "wrong_server.py"
BUGS = {
    "a log line on stdout": "IOP-8",
    "an answer on two lines": "IOP-8",
    "no seq": "IOP-9",
    "always the first seq": "IOP-9",
    "integers as float64": "IOP-10",
    "floats by six digits": "IOP-10",
    "shrugs at nonsense": "IOP-11",
    "goes on after nonsense": "IOP-11",
    "status 0 after nonsense": "IOP-11",
}


def served(bug):
    return Command([sys.executable, str(SERVER), bug])


MUTANTS += [
    Mutant(
        f"answers with {bug}" if requirement != "IOP-11" else bug,
        "protocol",
        (requirement,),
        partial(served, bug),
    )
    for bug, requirement in BUGS.items()
]
