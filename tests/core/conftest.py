"""In these tests, every call of `prism_plugin.core` checks shapes and types against its signature."""

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def _shapes_are_checked():
    jaxtyping.config.update("jaxtyping_disable", False)
    yield
    jaxtyping.config.update("jaxtyping_disable", True)
