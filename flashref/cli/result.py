"""What `flashref run` found out, as --json prints it."""

from typing import Any, NamedTuple


class Activation(NamedTuple):
    """The activation that was run, and the model's own; tau: FATReLU's, else 0."""

    name: str
    tau: float
    own: str
    own_tau: float

    @property
    def changed(self) -> bool:
        """Whether --activation took another than the model's own."""
        return (self.name, self.tau) != (self.own, self.own_tau)

    @property
    def shown(self) -> str:
        """As --activation has it."""
        return f"{self.name}:{self.tau:g}" if self.name == "fatrelu" else self.name


class Memory(NamedTuple):
    """Bytes: the budget, what is counted of it, the measured peak above `before`, and what that may be.

    before: what the process had in memory before anything of the model was, Python and its packages.

    allowed is the budget and what decision 8 does not count: flashref.models.memory.Uncounted.
    held: None with the proof, whose weights in memory are nobody's budget.
    """

    budget: int
    counted: int
    before: int
    peak: int
    allowed: int
    kv_cache: int
    biases: int
    id_tables: int
    workspace: int
    held: bool | None


class Result(NamedTuple):
    """What `flashref run --json` prints, in this order."""

    model: str
    prompt: str | None  # None: there is no tokenizer
    text: str | None
    token_ids: list[int]
    tokens: int
    activation: Activation
    semantics: str
    window: int
    rows: list[int | None]  # of each layer; None: resident whole
    memory_fraction: float
    memory: Memory
    device: str
    reader: str
    direct: bool | None  # whether reads went past the page cache; None: nothing was really read
    verified: bool | None  # None: --no-proof
    same_as_dense: bool | None
    overflows: int  # times that a layer's rows did not hold the whole window
    predictor: dict[str, float | None]
    perplexity: dict[str, float | None]
    methods: list[dict[str, Any]]
    scaled: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Names and plain values."""
        return {**self._asdict(), "activation": self.activation._asdict(), "memory": self.memory._asdict()}
