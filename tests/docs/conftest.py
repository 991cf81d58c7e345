"""What several tests of the documentation read."""

from __future__ import annotations

import pytest

from tests.docs.small_board import SmallBoard


@pytest.fixture(scope="session")
def board() -> SmallBoard:
    return SmallBoard()
