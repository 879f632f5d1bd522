"""The house rules that a machine can check: who may import whom, and how long anything may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocol", "api_server", "engine_core", "deploy")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Beside the standard library and itself.
ALLOWED = {
    "protocol": {"msgspec", "zmq"},
    "api_server": {"protocol", "msgspec", "starlette", "uvicorn", "tokenizers", "jinja2", "prometheus_client"},
    "engine_core": {"protocol", "msgspec", "numpy", "torch", "transformers", "tokenizers", "safetensors", "llguidance"},
    "deploy": {"protocol", "msgspec", "uvicorn_worker", "gunicorn"},
}
# Policy without I/O: plain classes fed with events and a clock, fit for a deterministic simulation.
PURE = (
    "api_server/detokenize.py",
    "api_server/exposition.py",
    "api_server/stop.py",
    "api_server/tallies.py",
    "api_server/text.py",
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("api_server/parsing/*.py"))),
    "engine_core/batch.py",
    "engine_core/cache/blocks.py",
    "engine_core/cache/prefix.py",
    "engine_core/delivery.py",
    "engine_core/grammar/admission.py",
    "engine_core/grammar/pool.py",
    "engine_core/request.py",
    "engine_core/scheduler.py",
    "engine_core/stats.py",
    "protocol/messages.py",
    "protocol/metrics.py",
    "protocol/prompt_logprobs.py",
    "protocol/sampling.py",
    "protocol/validate.py",
)
IMPURE = {"torch", "zmq", "asyncio", "time", "random", "socket", "threading"}
NEVER = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "multiprocessing"}


def sources(*roots: str) -> list[Path]:
    return sorted(path for root in roots for path in (ROOT / root).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_top_level_is_what_it_should_be() -> None:
    allowed = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests", *PACKAGES}
    ignored = {"build", "dist", "tokenwire.egg-info", "__pycache__"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - ignored
    assert found == allowed


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=name)
def test_imports_follow_the_arrows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {package, *PACKAGES}
    for module in imports(path):
        top = module.partition(".")[0]
        assert top not in NEVER, f"{module}: never pickle"
        if top in sys.stdlib_module_names or top == package:
            continue
        assert top in ALLOWED[package], f"{package} may not import {module}" + (" (an arrow)" if top in ours else "")


@pytest.mark.parametrize("path", PURE)
def test_policy_does_no_io(path: str) -> None:
    tops = {module.partition(".")[0] for module in imports(ROOT / path)}
    assert not tops & IMPURE


@pytest.mark.parametrize("path", sources(*PACKAGES, "tests"), ids=name)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", [path for path in sources(*PACKAGES) if path.read_text().strip()], ids=name)
def test_modules_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_module_is_called_after_nothing() -> None:
    vague = re.compile(r"(utils?|helpers?|common|misc|base|manager)\.py")
    assert [name(path) for path in sources(*PACKAGES, "tests") if vague.fullmatch(path.name)] == []


def test_the_frontend_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, api_server.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {module.partition(".")[0] for module in loaded.stdout.split()}
    assert not modules & {"torch", "transformers", "engine_core", "numpy"}
    assert {"starlette", "zmq"} <= modules
