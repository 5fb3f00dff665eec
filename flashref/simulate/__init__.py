"""What a model on flash would cost: traces, shapes, policies and sweeps; it *uses* the reference.

`simulate` costs a model without its weights; `paper_tables` derives the paper's figures and tables.
"""

from flashref.simulate.paper.tables import paper_tables
from flashref.simulate.simulation import Drawn, Simulation, simulate

__all__ = ["Drawn", "Simulation", "paper_tables", "simulate"]
