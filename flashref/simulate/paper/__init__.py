"""The paper's figures and tables, derived from shapes, densities, traces and a device fitted to Fig. 2b only.

None is computed from what it is compared with; where the paper contradicts itself, a note says so.
"""
