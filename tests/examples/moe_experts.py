"""Experts of a mixture in a cache: a unit is an id with a size, so an expert is simulated as a neuron is.

    python tests/examples/moe_experts.py

prints the bytes that each policy reads per token with a part of the experts in memory. The shapes are the
models' own; the routing is made up: a fixed popularity of each expert, and noise that fades in a few tokens.
"""

from typing import NamedTuple

import numpy as np

from flashref.simulate.caches.belady import belady
from flashref.simulate.caches.classic import lfu, lru, pinned
from flashref.simulate.caches.s3_fifo import s3_fifo
from flashref.simulate.trace import ActivationTrace, Reads, trace_of

POLICIES = {"LRU": lru, "LFU, aged": lfu(32), "S3-FIFO": s3_fifo(), "pinned": pinned, "Belady": belady}


class Mixture(NamedTuple):
    """Layers of so many experts, of which each token uses some; an expert is three matrices in two bytes."""

    name: str
    layers: int
    experts: int
    used: int
    width: int
    expert_width: int
    skew: float  # of the popularity: the standard deviation of its logarithm, where the noise has 1

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert."""
        return 3 * self.width * self.expert_width * 2


MIXTRAL = Mixture("Mixtral 8x7B", 32, 8, 2, 4096, 14336, skew=0.3)
QWEN3 = Mixture("Qwen3-30B-A3B", 48, 128, 8, 2048, 768, skew=1.5)


def routed(mixture: Mixture, tokens: int, warm: int, seed: int) -> ActivationTrace:
    """The experts that every token uses; the first `warm` tokens are not counted."""
    random = np.random.default_rng(seed)
    shape = (mixture.layers, mixture.experts)
    popularity, noise = mixture.skew * random.standard_normal(shape), random.standard_normal(shape)
    predicted = []
    for _ in range(tokens):
        noise = 0.6 * noise + 0.8 * random.standard_normal(shape)  # its variance stays 1
        chosen = np.argsort(popularity + noise, axis=1)[:, -mixture.used :]
        predicted.append([np.sort(ids) for ids in chosen])
    return trace_of(predicted, (mixture.experts,) * mixture.layers, warm)


def bytes_per_token(trace: ActivationTrace, reads: Reads, unit_bytes: int) -> float:
    """Bytes that a counted token reads on average."""
    counted = np.diff(reads.starts)[reads.token >= trace.first_counted]
    return int(counted.sum()) * unit_bytes / (trace.tokens - trace.first_counted)


def measure(mixture: Mixture, share: float, tokens: int = 320) -> dict[str, float]:
    """Bytes read per token of every policy, with this share of all experts in memory."""
    trace = routed(mixture, tokens, warm=64, seed=1)
    sizes = (mixture.expert_bytes,) * mixture.layers
    capacity = int(share * mixture.layers * mixture.experts) * mixture.expert_bytes
    return {
        name: bytes_per_token(trace, policy(trace, sizes, capacity), mixture.expert_bytes)
        for name, policy in POLICIES.items()
    }


def main(tokens: int = 320) -> None:
    """Print the table."""
    print(f"{'GB read per token':20}", *(f"{name:>10}" for name in POLICIES))
    for mixture, share in ((MIXTRAL, 0.5), (QWEN3, 0.25)):
        row = measure(mixture, share, tokens)
        print(f"{mixture.name + f', {share:.0%}':20}", *(f"{row[name] / 1e9:10.3f}" for name in POLICIES))


if __name__ == "__main__":
    main()
