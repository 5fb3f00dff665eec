"""A text that a model writes: what is asked for, what was written, what it cost, and the text as it comes."""

from collections.abc import Callable, Generator, Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.decode import Step
from flashref.models.generate import Sampler, sampler
from flashref.models.predictors import ErrorCounts
from flashref.models.tokens import Tokenizer, text_pieces

RecordedIds = npt.NDArray[np.unsignedinteger[Any]]


class TextRequest(NamedTuple):
    """A text that is asked for.

    prompt_ids: what it begins with; tokens: how many new ones follow; temperature, seed: of sampling,
    temperature 0 takes the likeliest token; cold: whether the windows are emptied before the pass that
    chooses the first new token, instead of being warmed by the prompt (decision 21).
    """

    prompt_ids: tuple[int, ...]
    tokens: int
    temperature: float = 0.0
    seed: int = 0
    cold: bool = False

    def sampler(self) -> Sampler:
        """A function that chooses the next token; each call gives a new one, from the same seed."""
        return sampler(self.temperature, self.seed)


class Record(NamedTuple):
    """What was predicted in a text.

    predicted: [pass][layer] → ascending ids, in the smallest integers that hold them; layers that are
    resident whole are left out; first_counted: passes from this one on choose a new token. With `cold` no
    pass before it is recorded.
    """

    predicted: Sequence[Sequence[RecordedIds]]
    first_counted: int

    @property
    def nbytes(self) -> int:
        """The bytes that all ids take."""
        return sum(ids.nbytes for layers in self.predicted for ids in layers)


class Account(NamedTuple):
    """What the passes that chose new tokens cost, all together.

    requests, useful_bytes, read_bytes, io_nanoseconds: of reading from flash; the reader "memory" simulates
    the times, and "direct" measures them. moved_rows, moved_bytes: rows that changed their place inside the
    DRAM matrices. overflows: how often a layer's rows did not hold a whole window, in any pass. seconds: by
    the clock, of all passes, those of the prompt too; tokens_per_second: new tokens divided by the time of
    the passes that chose them. peak_memory: the most bytes that the process had in memory, above what it had
    before the model.
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


class Decoded(NamedTuple):
    """A text decoded from flash, as token ids; its fields mean what those of GeneratedText mean."""

    new_ids: tuple[int, ...]
    steps: Sequence[Sequence[Step]]
    record: Record
    errors: ErrorCounts | None
    account: Account


class GeneratedText(NamedTuple):
    """What a model wrote; `str()` is the prompt and the text.

    prompt, text: None where the model has no tokenizer; steps: [pass][layer], empty where they were not kept;
    errors: of the predictors, None where there are no weights in memory to judge them by.
    """

    prompt: str | None
    text: str | None
    request: TextRequest
    new_ids: tuple[int, ...]
    steps: Sequence[Sequence[Step]]
    record: Record
    errors: ErrorCounts | None
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


class TextStream:
    """A text while it is written: iterate over its pieces, then `finish` gives the whole text."""

    def __init__(
        self,
        new_ids: Generator[int, None, Decoded],
        request: TextRequest,
        tokenizer: Tokenizer | None,
        text_of: Callable[[TextRequest, Decoded], GeneratedText],
    ) -> None:
        self._new_ids, self._request, self._tokenizer, self._text_of = new_ids, request, tokenizer, text_of
        self._decoded: Decoded | None = None

    @property
    def prompt(self) -> str:
        """The prompt as it is shown, or its ids and an arrow where there is no tokenizer."""
        if self._tokenizer is None:
            return f"{shown_ids(self._request.prompt_ids)} → "
        return self._tokenizer.decode(self._request.prompt_ids)

    def __iter__(self) -> Iterator[str]:
        ids = self._remembering()
        if self._tokenizer is None:
            return id_pieces(ids)
        return text_pieces(self._tokenizer, self._request.prompt_ids, ids)

    def finish(self) -> GeneratedText:
        """The whole text; what is not yet written is written first."""
        for _ in self._remembering():
            pass
        assert self._decoded is not None
        return self._text_of(self._request, self._decoded)

    def _remembering(self) -> Iterator[int]:
        """The ids that are still to come; after the last one, what was decoded is kept."""
        decoded = yield from self._new_ids
        self._decoded = self._decoded or decoded


def shown_ids(ids: Sequence[int]) -> str:
    """Token ids as one text, with commas between them."""
    return ",".join(map(str, ids))


def id_pieces(ids: Iterator[int]) -> Iterator[str]:
    """Token ids one by one as they come, with a comma before each but the first."""
    for number, token_id in enumerate(ids):
        yield f",{token_id}" if number else str(token_id)
