"""What a model on flash would cost: traces, shapes, policies and sweeps; it *uses* the reference.

`simulate` costs a model without its weights; `paper_tables` derives the paper's figures and tables. A name's
module is loaded when the name is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
