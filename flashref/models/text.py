"""A text that a model writes: what is asked for, what it is, and what it cost."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.decode import Step
from flashref.models.generate import Sampler, sampler
from flashref.models.predictors import Errors

RecordedIds = npt.NDArray[np.unsignedinteger[Any]]


class TextRequest(NamedTuple):
    """A text that is asked for.

    tokens: how many new ones; temperature, seed: of sampling, 0 takes the likeliest token; cold: empty the
    windows before the pass that chooses the first new token (decision 21).
    """

    prompt_ids: tuple[int, ...]
    tokens: int
    temperature: float = 0.0
    seed: int = 0
    cold: bool = False

    def sampler(self) -> Sampler:
        """How the next token is chosen; each text has a generator of its own, from the same seed."""
        return sampler(self.temperature, self.seed)


class Record(NamedTuple):
    """What was predicted: [pass][layer] → ascending ids, in the smallest integers that hold them.

    Layers that are resident whole are left out. Passes from `first_counted` on choose a new token; with
    `cold` those before it are not recorded.
    """

    predicted: Sequence[Sequence[RecordedIds]]
    first_counted: int

    @property
    def nbytes(self) -> int:
        """Bytes of all ids."""
        return sum(ids.nbytes for layers in self.predicted for ids in layers)


class Account(NamedTuple):
    """What the passes that chose new tokens cost, all together.

    requests, useful_bytes, read_bytes, io_nanoseconds: of reading from flash; the times are simulated by the
    reader "memory", and measured by "direct". moved_rows, moved_bytes: inside the DRAM matrices. overflows:
    times that a layer's rows did not hold a whole window, in any pass. seconds: by the clock, of all passes,
    the prompt's too; tokens_per_second: new tokens by the time of the passes that chose them. peak_memory:
    bytes that the process had at most, above what it had before the model.
    """

    requests: int
    useful_bytes: int
    read_bytes: int
    io_nanoseconds: int
    moved_rows: int
    moved_bytes: int
    overflows: int
    seconds: float
    tokens_per_second: float
    peak_memory: int


class GeneratedText(NamedTuple):
    """What a model wrote; `str()` is the prompt and the text.

    prompt, text: None where the model has no tokenizer; steps: [pass][layer], empty where they were not to be
    kept; errors: of the predictors, None where there are no weights in memory to judge by.
    """

    prompt: str | None
    text: str | None
    request: TextRequest
    new_ids: tuple[int, ...]
    steps: Sequence[Sequence[Step]]
    record: Record
    errors: Errors | None
    account: Account

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of the prompt and of the new tokens."""
        return (*self.request.prompt_ids, *self.new_ids)

    @property
    def shown(self) -> tuple[str, str]:
        """Prompt and new text as they are shown: token ids where there is no tokenizer."""
        if self.prompt is None or self.text is None:
            return f"{shown_ids(self.request.prompt_ids)} → ", shown_ids(self.new_ids)
        return self.prompt, self.text

    def __str__(self) -> str:
        return "".join(self.shown)

    def __repr__(self) -> str:
        speed = f"{self.account.tokens_per_second:.3g} tokens a second"
        return f"<GeneratedText of {len(self.new_ids)} new tokens, {speed}: {str(self)!r}>"

    def _repr_html_(self) -> str:
        prompt, text = map(escape, self.shown)
        rows = (f"<tr><td>{name}<td>{value:,}</tr>" for name, value in self.account._asdict().items())
        return f"<p><b>{prompt}</b>{text}</p><table>{''.join(rows)}</table>"


def shown_ids(ids: Sequence[int]) -> str:
    """Token ids with commas between."""
    return ",".join(map(str, ids))


def id_pieces(ids: Iterator[int]) -> Iterator[str]:
    """Token ids as they come, with commas between."""
    for number, token_id in enumerate(ids):
        yield f",{token_id}" if number else str(token_id)
