"""The conformance kit: any implementation, in any language, judged against specs/.

An implementation is reached through an adapter (chapter 96); each requirement has one check; expected values
come from definitions, never from flashref's own functions. The kit needs flashref's `test` extra, and loads
it when a name of `__init__.pyi` is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
