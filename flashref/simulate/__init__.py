"""The storage simulator: traces, shapes, policies and sweeps; this package *uses* the reference.

`simulate` says what a token costs without a model's weights, and `paper_tables` derives the paper's figures
and tables. A name's module is loaded when the name is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
