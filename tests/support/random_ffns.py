"""Small random FFNs for JAX, and inputs of their up projections."""

import jax.numpy as jnp
import numpy as np

from flashref.types import FFN


def random_ffn(activation, n=24, d=8, gated=False, tau=0.0, rank=None, seed=0):
    """An FFN few of whose neurons fire; with a rank, the projection that decides has only this rank."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    decides = normal(n, rank) @ normal(rank, d) if rank else normal(n, d)
    bias = normal(n) - 2
    other = normal(n, d) if gated else None
    if gated:
        return FFN(activation, other, normal(n, d), decides, None, bias, None, tau)
    return FFN(activation, decides, normal(n, d), None, bias, None, None, tau)


def planted(tokens, d=8, seed=3):
    """Inputs of the up projection, (tokens, d)."""
    return np.random.default_rng(seed).normal(size=(tokens, d)).astype(np.float32)
