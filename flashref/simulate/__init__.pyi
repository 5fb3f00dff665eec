from .paper.tables import paper_tables as paper_tables
from .simulation import Drawn as Drawn
from .simulation import Simulation as Simulation
from .simulation import simulate as simulate
