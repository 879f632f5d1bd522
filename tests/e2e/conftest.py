from collections.abc import Iterator

import pytest

from tests.e2e.server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The built-in model, two frontends. For tests that leave it as it was."""
    with Server("--api-workers", "2") as running:
        yield running
