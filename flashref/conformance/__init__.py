"""The conformance kit: it judges any implementation against specs/, and uses the reference's types.

An implementation is reached through an adapter (chapter 96), the reference itself through
`conformance.reference`. Each requirement has one check. Expected values come from definitions, never from
flashref's own functions. The kit needs the `test` extra of flashref, which it loads when a name of
`__init__.pyi` is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
