"""From logits to new tokens, for any model that takes one token at a time.

A model is a `ForwardOne` here: a function from a token id to the logits of the next token, which holds its
state (KV cache and windows). Texts are token ids; the module `tokens` turns them into characters.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flashref.types import Array, DomainError

ForwardOne = Callable[[int], Array]  # token id to the logits of the next one (vocabulary,)
Sampler = Callable[[Array], int]  # logits to the id of the next token


def greedy(logits: Array) -> int:
    """Return the token with the highest logit, and the lowest id among equals."""
    return int(np.argmax(logits))


def sampler(temperature: float, seed: int) -> Sampler:
    """Make a function that draws the next token from softmax(logits / temperature), in float64.

    Args:
        temperature: 0 always takes the likeliest token (`greedy`).
        seed: equal seeds give equal draws for equal logits.

    Returns:
        A function from logits to a token id; it holds the generator of random numbers.

    Raises:
        DomainError: the temperature or the seed is negative.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise DomainError(
            f"the temperature must be a number from 0 up, not {temperature}; 0 takes the likeliest token"
        )
    if seed < 0:
        raise DomainError(f"the seed must be a whole number from 0 up, not {seed}")
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
    """Raise DomainError unless there is a token and every id is in 0 … vocabulary − 1."""
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
    """Generate new tokens.

    The tokens of the prompt pass through the model one by one (decision 21). The last new token does not
    pass, so there are len(prompt_ids) + count − 1 passes.

    Args:
        forward_one: the model; its state is that before the first token.
        prompt_ids: the token ids of the prompt.
        count: the number of new tokens.
        choose: chooses a token from its logits.
        context: the most tokens that the model takes.
        vocabulary: the number of token ids.

    Returns:
        An iterator over the new token ids, each with the logits that it was chosen from.

    Raises:
        DomainError: the request does not fit the model; raised at once, before any pass.
    """
    check_request(prompt_ids, count, context, vocabulary)
    return _generate(forward_one, prompt_ids, count, choose)


def check_request(prompt_ids: Sequence[int], count: int, context: int, vocabulary: int) -> None:
    """Raise DomainError, with the largest count, unless prompt and new tokens fit context and vocabulary."""
    check_ids(prompt_ids, vocabulary)
    largest = context - len(prompt_ids)
    if largest < 1:
        raise DomainError(
            f"the prompt has {len(prompt_ids)} tokens, but the context is {context}; "
            f"shorten it to {max(context - count, 1)} tokens"
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
