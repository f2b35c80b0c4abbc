"""In these tests, every call of `prism_plugin.core` checks types and shapes against its signature."""

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def _signatures_are_checked(request):
    jaxtyping.config.update("jaxtyping_disable", request.node.get_closest_marker("other_types") is not None)
    yield
    jaxtyping.config.update("jaxtyping_disable", True)
