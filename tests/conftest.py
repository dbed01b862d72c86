import os

import pytest

from sandbox import Sandbox

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach a network


@pytest.fixture(scope="session")
def sandbox():
    with Sandbox() as running:
        yield running
