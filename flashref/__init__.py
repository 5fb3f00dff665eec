"""flashref: the executable reference of "LLM in a flash" (arXiv 2312.11514).

`__init__.pyi` lists everything that a caller of `decode_layer` needs, chapter by chapter. A name's module is
loaded when the name is first used, so that using one chapter loads no chapter that it does not need.
"""

import lazy_loader

__version__ = "0.1.0"
SPEC_VERSION = "1.3"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["SPEC_VERSION"]
