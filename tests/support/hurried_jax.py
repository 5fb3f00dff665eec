"""JAX in a hurry: programs that run once are compiled without most optimisations."""

import jax
import pytest

# A test file takes the fixture as its own: hurried = hurried_jax.hurried


@pytest.fixture(autouse=True, scope="module")
def hurried(request):
    """Programs compiled in a hurry, which files in a row share, and none of them after these tests."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    modules = list(dict.fromkeys(item.module for item in request.session.items if hasattr(item, "module")))
    following = modules[modules.index(request.module) + 1 :]
    if not (following and hasattr(following[0], "hurried")):
        jax.clear_caches()
