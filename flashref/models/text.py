"""A text that a model writes: the request, the text with its account, and the stream of its pieces."""

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
    """The request for a text.

    Attributes:
        prompt_ids: the token ids that the text begins with.
        tokens: the number of new tokens.
        temperature: the temperature of sampling; 0 always takes the likeliest token.
        seed: the seed of sampling.
        cold: whether the windows are emptied before the pass that chooses the first new token, instead of
            keeping what the prompt warmed (decision 21).
    """

    prompt_ids: tuple[int, ...]
    tokens: int
    temperature: float = 0.0
    seed: int = 0
    cold: bool = False

    def sampler(self) -> Sampler:
        """Return a function that chooses the next token; each call returns a new one with the same seed."""
        return sampler(self.temperature, self.seed)


class Record(NamedTuple):
    """The neurons that were predicted while a text was written.

    Attributes:
        predicted: [pass][layer], ascending ids in the smallest integers that hold them. Layers that are
            resident whole are left out, and with `cold` all passes before the first new token, too.
        first_counted: the first pass that chooses a new token.
    """

    predicted: Sequence[Sequence[RecordedIds]]
    first_counted: int

    @property
    def nbytes(self) -> int:
        """The bytes that all ids take in memory."""
        return sum(ids.nbytes for layers in self.predicted for ids in layers)


class Account(NamedTuple):
    """What a text cost: the sum over the passes that chose new tokens, where nothing else is said.

    Attributes:
        requests: reads from flash.
        useful_bytes: bytes of the bundles that were needed.
        read_bytes: bytes that were read for them, in whole blocks.
        io_nanoseconds: time of the reads, which the reader "memory" simulates and "direct" measures.
        moved_rows: rows that changed their place inside the DRAM matrices.
        moved_bytes: the bytes of these rows.
        overflows: how often the rows of a layer did not hold a whole window, in all passes.
        seconds: time of all passes by the clock, those of the prompt included.
        tokens_per_second: new tokens divided by the time of the passes that chose them.
        peak_memory: the most bytes that the process had in memory, above what it had before the model.
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
    """A text that was decoded from flash, as token ids; its fields are those of GeneratedText."""

    new_ids: tuple[int, ...]
    steps: Sequence[Sequence[Step]]
    record: Record
    errors: ErrorCounts | None
    account: Account


class GeneratedText(NamedTuple):
    """A text that a model wrote; `str()` of it is the prompt and the new text.

    Attributes:
        prompt: the prompt as text; None where the model has no tokenizer.
        text: the new text; None where the model has no tokenizer.
        request: what was asked for.
        new_ids: the ids of the new tokens.
        steps: [pass][layer], what each layer did; empty where the steps were not kept.
        record: the neurons that were predicted.
        errors: the predictors' errors, over all passes; None without a proof, whose weights judge them.
        account: what the text cost.
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
        """The prompt and the new text, as token ids where there is no tokenizer."""
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
    """A text while it is written: iterate over it for the pieces, then `finish` it for the whole text."""

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
        """The prompt, as token ids and an arrow where there is no tokenizer."""
        if self._tokenizer is None:
            return f"{shown_ids(self._request.prompt_ids)} → "
        return self._tokenizer.decode(self._request.prompt_ids)

    def __iter__(self) -> Iterator[str]:
        ids = self._remembering()
        if self._tokenizer is None:
            return id_pieces(ids)
        return text_pieces(self._tokenizer, self._request.prompt_ids, ids)

    def finish(self) -> GeneratedText:
        """Write what is not yet written, and return the whole text."""
        for _ in self._remembering():
            pass
        assert self._decoded is not None
        return self._text_of(self._request, self._decoded)

    def _remembering(self) -> Iterator[int]:
        """Yield the ids that are still to come, and keep what was decoded after the last one."""
        decoded = yield from self._new_ids
        self._decoded = self._decoded or decoded


def shown_ids(ids: Sequence[int]) -> str:
    """Write token ids with commas between them."""
    return ",".join(map(str, ids))


def id_pieces(ids: Iterator[int]) -> Iterator[str]:
    """Write token ids one by one as they come, with a comma before each but the first."""
    for number, token_id in enumerate(ids):
        yield f",{token_id}" if number else str(token_id)
