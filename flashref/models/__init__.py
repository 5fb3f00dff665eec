"""Language models of five families that read their FFN weights from flash; the package *uses* the reference.

`open_model(...).generate(...)` is the entrance (module `opened`). Behind it, in the order of a run:

- `prepared` holds the request and reads the model's small files, with `checkpoint`, `config`, `tokens`,
  `predictors` and `budget`;
- `setup` makes the model ready to decode, with `pack`, `image_readers` and `proof`;
- `decoding` lets it write a text, with `model` (one token through any family), `families` (the tensors and
  the arithmetic of each) and `generate` (from logits to the next token);
- `text` is what was written and what it cost; `perplexity` and `memory` measure the model.

`whole_text` computes whole texts in JAX, for the training of predictors.
"""

from flashref.models.opened import OpenModel, open_model
from flashref.models.text import Account, GeneratedText

__all__ = ["Account", "GeneratedText", "OpenModel", "open_model"]
