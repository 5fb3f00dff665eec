"""What can be said about a text that was read from flash: checked, measured, and compared with other methods.

`flashref run` prints these findings; `run_report` turns them into sentences and tables.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from flashref.models.budget import Amount
from flashref.models.memory import Memory
from flashref.models.opened import OpenModel
from flashref.models.perplexity import FlashPerplexity
from flashref.models.prepared import SEMANTICS
from flashref.models.proof import Proven
from flashref.models.setup import Setup
from flashref.models.text import GeneratedText
from flashref.simulate.runs import Tables, tables_of_text
from flashref.storage.progress import Progress, unseen


class Findings(NamedTuple):
    """Everything that `flashref run` has found out about a text.

    Attributes:
        model: the model's name.
        device: the device's name.
        setup: the opened model.
        text: the text and its account.
        dense_ids: the new tokens that the dense model writes; None without a proof.
        perplexity: None where it was not measured.
        verdict: what the proof says.
        memory: the memory of the process, measured.
        tables: what each method of Table 2 would have cost.
    """

    model: str
    device: str
    setup: Setup
    text: GeneratedText
    dense_ids: tuple[int, ...] | None
    perplexity: FlashPerplexity | None
    verdict: Proven
    memory: Memory
    tables: Tables

    @property
    def held(self) -> bool:
        """Whether all checks held: the proof, and the peak of memory where it is held to the budget."""
        return self.verdict.failure is None and self.memory.held is not False

    @property
    def semantics(self) -> str:
        """The name of the semantics: which rows the FFN summed."""
        run = self.setup.prepared.request.semantics
        own = getattr(run, "__name__", repr(run))
        return next((name for name, known in SEMANTICS.items() if known == run), own)

    @property
    def rows(self) -> list[int | None]:
        """The rows of each layer's DRAM matrix; None for a layer that is resident whole."""
        dense, capacities = self.setup.demand.dense, self.setup.budget.capacities
        return [None if layer in dense else rows for layer, rows in enumerate(capacities)]

    @property
    def memory_fraction(self) -> float:
        """The memory budget as a share of the model's bytes."""
        asked = self.setup.prepared.request.memory
        if isinstance(asked, Amount):
            return self.setup.budget.memory / self.setup.demand.total
        return asked

    @property
    def same_as_dense(self) -> bool | None:
        """Whether the dense model writes the same text; None without a proof."""
        return None if self.dense_ids is None else self.text.new_ids == self.dense_ids

    @property
    def activation(self) -> tuple[str, float]:
        """The activation that was run, and its tau."""
        config = self.setup.prepared.checkpoint.config
        return config.activation, config.tau

    def as_json(self) -> dict[str, Any]:
        """The object that `flashref run --json` prints, with its keys in this order."""
        text, setup, errors = self.text, self.setup, self.text.errors
        (name, tau), (own, own_tau) = self.activation, setup.prepared.own_activation
        measured = self.perplexity or FlashPerplexity(None, math.inf, None)
        return {
            "model": self.model,
            "prompt": text.prompt,
            "text": text.text,
            "token_ids": list(text.token_ids),
            "tokens": len(text.new_ids),
            "seconds": text.account.seconds,
            "tokens_per_second": text.account.tokens_per_second,
            "activation": {"name": name, "tau": tau, "own": own, "own_tau": own_tau},
            "semantics": self.semantics,
            "window": setup.budget.window,
            "rows": self.rows,
            "memory_fraction": self.memory_fraction,
            "memory": self.memory._asdict(),
            "device": self.device,
            "reader": setup.prepared.request.reader,
            "direct": setup.storage.direct,
            "verified": self.verdict.verified,
            "same_as_dense": self.same_as_dense,
            "overflows": text.account.overflows,
            "predictor": {
                "false_negative_rate": None if errors is None else errors.false_negative_rate,
                "false_positive_rate": None if errors is None else errors.false_positive_rate,
            },
            # JSON has no infinity: a perplexity beyond every float is null, as is one that was not measured.
            "perplexity": {
                which: value if value is not None and math.isfinite(value) else None
                for which, value in measured._asdict().items()
            },
            "methods": [method._asdict() for method in self.tables.methods],
            "scaled": [method._asdict() for method in self.tables.scaled],
        }


def find(
    model: OpenModel,
    text: GeneratedText,
    device: str,
    held_out: Sequence[int] | None = None,
    progress: Progress = unseen,
) -> Findings:
    """Find out everything that can be said about a text.

    Args:
        model: the open model that wrote the text.
        text: what `generate` or `write` gave.
        device: the name of the model's device, for the report.
        held_out: token ids of a text whose perplexity is to be measured; None: it is not measured.
        progress: is told how many tokens of that text have passed.

    Returns:
        The findings. The other methods are replayed at OPT 6.7B's shape only if the model has a proof, for
        without one nothing but this model is to take memory.

    Raises:
        DomainError: the held-out text has fewer than two tokens.
    """
    perplexity = None if held_out is None else model.perplexity(held_out, progress)
    dense_ids = model.dense_ids(text.request)
    tables = tables_of_text(model, text, scaled=model.prepared.request.proof)
    return Findings(
        model=model.name,
        device=device,
        setup=model.open(),
        text=text,
        dense_ids=dense_ids,
        perplexity=perplexity,
        verdict=model.verify(),
        memory=model.measure_memory(),  # last, because the memory that the tables took counts, too
        tables=tables,
    )
