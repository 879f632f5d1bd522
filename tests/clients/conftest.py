"""One server for all clients, with the built-in model behind an API key."""

from collections.abc import Iterator

import pytest

from tests.clients.service import KEY, Service


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with Service("--api-key", KEY) as running:
        yield running
