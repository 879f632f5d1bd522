from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.supervised import Supervised, until


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(**plan: Any) -> Supervised:
        started.append(Supervised(tmp_path, **plan))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
        until(lambda each=each: each.running() == [])  # type: ignore[misc]
