import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Coroutine tests run under asyncio, as the frontend does."""
    return "asyncio"
