"""The paper's figures and tables, derived with the simulator; this package *uses* the reference.

They come from shapes, densities, traces and a device fitted to Fig. 2b. None is computed from the result that
it is compared with, and where the paper contradicts itself a note says so.
"""
