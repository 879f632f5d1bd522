import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, and no clock: a busy machine is no reason to fail.
settings.register_profile("tokenwire", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tokenwire")


@pytest.fixture
def anyio_backend() -> str:
    """Coroutine tests run under asyncio, as the frontend does."""
    return "asyncio"
