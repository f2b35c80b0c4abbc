"""For all tests: no network, one thread, and the same random numbers in every test, whatever ran before it."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so it is set before anything else
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# where transformers copies the code of repositories to: not into the user's, and not two processes into one
if "HF_MODULES_CACHE" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules")
    atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

import jaxtyping
import pytest
import torch
from scripts import Scripts

# The shapes in the signatures of `core` can be checked at every call: tests/core/conftest.py says when. Here, since a module is
# rewritten when it is first imported.
jaxtyping.install_import_hook("prism_plugin.core", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
jaxtyping.config.update("jaxtyping_disable", True)
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def scripts():
    """What runs examples and the code of pages."""
    with Scripts() as running:
        yield running
