"""openai-node and the AI SDK: the tests in `node/`, run by node. `npm ci` in that folder installs what they need."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.service import KEY, MODEL, Service

FOLDER = Path(__file__).parent / "node"
LIMIT_S = 300.0

INSTALLED = shutil.which("node") is not None and (FOLDER / "node_modules").is_dir()

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs node, and `npm ci` in tests/clients/node")


@pytest.mark.parametrize("script", ["openai.test.mjs", "ai_sdk.test.mjs"])
def test_of_node(service: Service, script: str) -> None:
    environ = {**os.environ, "BASE_URL": service.url, "API_KEY": KEY, "MODEL": MODEL}
    command = ["node", "--test", "--test-reporter=tap", script]
    ran = subprocess.run(command, cwd=FOLDER, env=environ, capture_output=True, text=True, timeout=LIMIT_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    service.wait_idle()
