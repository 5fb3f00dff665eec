"""How JAX sees an FFN: `flashref.xla` registers it once, when it is imported, before any other JAX code."""

import jax

from flashref.types import FFN


def register_ffn() -> None:
    """Register FFN with JAX: every field is a leaf but the activation, which is part of the structure.

    An activation changes the program and not its data, so `jit` compiles for each of them. Call it once in a
    process; `flashref.xla` does.
    """
    jax.tree_util.register_pytree_node(
        FFN, lambda ffn: (ffn[1:], ffn.activation), lambda activation, leaves: FFN(activation, *leaves)
    )
