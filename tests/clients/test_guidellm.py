"""guidellm, from its health check to its report."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.service import KEY, Service
from tests.e2e.server import ROOT

COMMAND = shutil.which("guidellm", path=str(Path(sys.executable).parent))
LIMIT_S = 300.0
OUTPUT_TOKENS = 16

pytestmark = pytest.mark.skipif(COMMAND is None, reason="guidellm is not installed")


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_a_short_benchmark(service: Service, tmp_path: Path, route: str) -> None:
    assert COMMAND is not None
    report = tmp_path / "report.json"
    command = [
        COMMAND, "run", "--disable-console",
        "--backend", f"kind=openai_http,target={service.url},api_key={KEY},request_format={route}",
        "--profile", "kind=concurrent,streams=4",
        "--constraint", "kind=max_requests,count=8",
        "--tokenizer", f"kind=hf_auto,model={ROOT / 'engine_core/tiny/model'}",
        "--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={OUTPUT_TOKENS}",
        "--output", f"kind=json,path={report}",
    ]  # fmt: skip
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=LIMIT_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    assert metrics["request_totals"]["errored"] == 0
    assert metrics["request_totals"]["successful"] > 0
    assert metrics["output_token_count"]["successful"]["mean"] == OUTPUT_TOKENS
    assert metrics["time_to_first_token_ms"]["successful"]["mean"] > 0
    service.wait_idle()
