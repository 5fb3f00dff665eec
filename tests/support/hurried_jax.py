"""JAX in a hurry: programs that run once are compiled without most optimisations."""

import jax
import pytest

# A test file takes the fixture as its own: hurried = hurried_jax.hurried


@pytest.fixture(autouse=True, scope="module")
def hurried():
    """Programs compiled in a hurry, and none of them after these tests."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
