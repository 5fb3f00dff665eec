"""Models of five families, read from flash by the reference: `open_model(...).generate(...)`.

This package *uses* the reference and is no part of it. `opened` has the model that writes text; `request` and
`prepared` what is asked of it, `storage` and `setup` how it is opened, `decoding` and `text` what it writes.
`checkpoint` reads a Hugging Face directory; `families` says which tensors each family must have and computes
its block; `model` passes one token at a time through any of them, with the FFN passed in as a function;
`generate` turns logits into text and into perplexity.
"""

from flashref.models.opened import OpenModel, open_model
from flashref.models.text import Account, GeneratedText

__all__ = ["Account", "GeneratedText", "OpenModel", "open_model"]
