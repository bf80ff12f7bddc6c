from __future__ import annotations

import os

import pytest
import torch

# A process for each core: threads of theirs would only stand in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
