"""The command as a user meets it: a process, its exit code, and what it writes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.options import OPTIONS

ROOT = Path(__file__).parents[2]


def tokenwire(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TOKENWIRE_")}
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=ROOT,
        env={**kept, "COLUMNS": "120", **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_is_grouped_and_complete() -> None:
    for command in ("serve", "engine", "api"):
        told = tokenwire(command, "--help")
        assert told.returncode == 0
        mine = [option for option in OPTIONS if command in option.commands]
        for option in mine:
            assert (option.name.upper() if option.name == "model" else f"--{option.name}") in told.stdout
            assert f"\n{option.group}:\n" in told.stdout
        assert not [option for option in OPTIONS if option not in mine and f"--{option.name} " in told.stdout]


def test_the_commands_are_listed() -> None:
    told = tokenwire("--help").stdout
    assert all(f"    {command} " in told for command in ("serve", "engine", "api"))
    assert "Precedence" in told


def test_version() -> None:
    told = tokenwire("--version")
    assert told.returncode == 0
    assert told.stdout.startswith("tokenwire ")


@pytest.mark.parametrize(
    ("arguments", "environ", "named"),
    [
        (["serve", "--port", "x"], {}, "--port"),
        (["serve", "--frobnicate"], {}, "--frobnicate"),
        (["serve"], {"TOKENWIRE_BLOCK_SIZE": "x"}, "TOKENWIRE_BLOCK_SIZE"),
        (["engine", "--listen", "tcp://0.0.0.0:5"], {}, "--listen"),
        ([], {}, "COMMAND"),
    ],
)
def test_bad_usage_is_exit_2_and_two_lines_at_most(arguments: list[str], environ: dict[str, str], named: str) -> None:
    told = tokenwire(*arguments, **environ)
    assert told.returncode == 2
    assert told.stdout == ""
    lines = told.stderr.splitlines()
    assert named in lines[0]
    assert len(lines) <= 2


def test_a_taken_port_is_exit_3_and_the_last_line_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = tokenwire("serve", "--port", port)
    assert told.returncode == 3
    assert port in told.stderr.splitlines()[-1]
    assert "Traceback" not in told.stderr


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, deploy.cli, deploy.plan, deploy.supervisor; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {module.partition(".")[0] for module in loaded.stdout.split()}
    assert not modules & {"torch", "transformers", "numpy", "starlette", "uvicorn", "api_server", "engine_core"}


def test_a_missing_model_is_exit_3_and_the_last_line_names_it(tmp_path: Path) -> None:
    told = tokenwire("serve", str(tmp_path / "missing"), "--port", "0", OMP_NUM_THREADS="1")
    assert told.returncode == 3
    assert str(tmp_path / "missing") in told.stderr.splitlines()[-1]
    assert "Traceback" not in told.stderr
