"""From logits to new tokens, for any model that takes one token at a time.

A model is a `ForwardOne`: a token id in, the logits of the next token out, its state (KV cache, windows)
held inside. Texts are token ids here; `tokens` turns them into characters.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flashref.types import Array, DomainError

ForwardOne = Callable[[int], Array]  # token id to the logits of the next one (vocabulary,)
Sampler = Callable[[Array], int]  # logits to the id of the next token


def greedy(logits: Array) -> int:
    """The token with the highest logit, the lowest id among equals."""
    return int(np.argmax(logits))


def sampler(temperature: float, seed: int) -> Sampler:
    """A seeded draw from softmax(logits / temperature), in float64; temperature 0 is greedy.

    Equal seeds give equal draws for equal logits. Raises DomainError for a negative temperature or seed.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise DomainError(f"temperature must be a number from 0 up, not {temperature}; 0 takes the likeliest")
    if seed < 0:
        raise DomainError(f"seed must be a whole number from 0 up, not {seed}")
    if temperature == 0:
        return greedy
    generator = np.random.default_rng(seed)

    def draw(logits: Array) -> int:
        wide = logits.astype(np.float64)
        with np.errstate(over="ignore"):  # a tiny temperature: −inf, whose exp is 0
            weights = np.exp((wide - wide.max()) / temperature)
        # One uniform number through the inverse of the distribution; always a token of weight above 0.
        total = np.cumsum(weights)
        return int(np.searchsorted(total, generator.random() * total[-1], side="right"))

    return draw


def check_ids(ids: Sequence[int], vocabulary: int) -> None:
    """DomainError unless there is a token and every id is in 0 … vocabulary − 1."""
    if len(ids) == 0:
        raise DomainError("the prompt is empty; give at least one token")
    for token_id in ids:
        if not 0 <= token_id < vocabulary:
            raise DomainError(f"token id {token_id} is outside the vocabulary; use 0 … {vocabulary - 1}")


def generate(
    forward_one: ForwardOne,
    prompt_ids: Sequence[int],
    count: int,
    choose: Sampler = greedy,
    *,
    context: int,
    vocabulary: int,
) -> Iterator[tuple[int, Array]]:
    """Each of `count` new tokens with the logits that it was chosen from, as they come.

    The prompt's tokens pass one by one (decision 21); the last new token is not passed on, so that there
    are len(prompt) + count − 1 passes. Raises DomainError at once, before any pass.
    """
    check_request(prompt_ids, count, context, vocabulary)
    return _generate(forward_one, prompt_ids, count, choose)


def check_request(prompt_ids: Sequence[int], count: int, context: int, vocabulary: int) -> None:
    """DomainError unless prompt and new tokens fit context and vocabulary; names the largest count."""
    check_ids(prompt_ids, vocabulary)
    largest = context - len(prompt_ids)
    if largest < 1:
        raise DomainError(
            f"the prompt has {len(prompt_ids)} tokens and the context {context}; "
            f"shorten it to {max(context - count, 1)}"
        )
    if not 1 <= count <= largest:
        raise DomainError(
            f"{count} new tokens after a prompt of {len(prompt_ids)} do not fit the context of {context}; "
            f"ask for 1 … {largest}"
        )


def _generate(
    forward_one: ForwardOne, prompt_ids: Sequence[int], count: int, choose: Sampler
) -> Iterator[tuple[int, Array]]:
    for token_id in prompt_ids[:-1]:
        forward_one(token_id)
    token_id = prompt_ids[-1]
    for _ in range(count):
        logits = forward_one(token_id)
        token_id = choose(logits)
        yield token_id, logits
