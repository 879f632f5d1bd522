"""The option table, where values come from, and what children are told."""

import fcntl
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from api_server.config import from_environ
from api_server.parsing import select
from deploy.options import OPTIONS, PREFIX, REASONING_PARSERS, TOOL_PARSERS
from deploy.plan import prepared, thread_defaults, usable_cores
from deploy.settings import Settings, UsageError, resolve
from deploy.sockets import CannotStart, run_folder

ROOT = Path(__file__).parents[2]


def settings(*arguments: str, **environ: str) -> Settings:
    return resolve(arguments, {f"{PREFIX}{name}": text for name, text in environ.items()}, "1.2.3")


def refusal(*arguments: str, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        settings(*arguments, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- the table


def test_names_are_unique_and_defaults_parse() -> None:
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)
    for option in OPTIONS:
        if option.default is not None:
            parsed = option.parse(option.default)
            assert option.parse(parsed) == parsed
        else:
            assert option.shown, f"--{option.name}: help says nothing of its default"


def test_the_documented_defaults() -> None:
    values = settings("serve").values
    expected = {
        "host": "127.0.0.1",
        "port": "8000",
        "api-workers": "1",
        "device": "auto",
        "dtype": "auto",
        "max-num-seqs": "256",
        "block-size": "16",
        "enable-prefix-caching": "true",
        "load-format": "auto",
        "max-queued-requests": "512",
        "shutdown-timeout": "120",
        "stall-timeout": "60",
        "keepalive-interval": "15",
        "first-token-timeout": "120",
        "request-timeout": "1800",
        "drain-grace": "0",
        "resume-grace": "60",
        "stream-interval-ms": "0",
        "trust-remote-code": "false",
        "tensor-parallel-size": "1",
        "data-parallel-size": "1",
        "max-body-size": str(4 << 20),
        "log-format": "text",
    }
    assert {name: values[name] for name in expected} == expected
    assert "max-model-len" not in values


# ---------------------------------------------------------------------------------------------------- precedence


def test_flag_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('port = 1\nmax-num-seqs = 1\nblock_size = 1\napi-key = ["a", "b"]\nenable-prefix-caching = false\n')
    found = settings("serve", "--config", str(file), "--port", "3", PORT="2", MAX_NUM_SEQS="2", HOST=" ")
    assert [found[name] for name in ("port", "max-num-seqs", "block-size", "host")] == ["3", "2", "1", "127.0.0.1"]
    assert (found["api-key"], found["enable-prefix-caching"]) == ("a,b", "false")
    assert settings("serve", CONFIG=str(file))["port"] == "1"


def test_lists_may_be_repeated_or_comma_separated() -> None:
    assert settings("serve", "--api-key", "a", "--api-key", "b")["api-key"] == "a,b"
    assert settings("serve", API_KEY="a, b")["api-key"] == "a,b"
    assert settings("serve", "--api-key", "c", API_KEY="a,b")["api-key"] == "c"


def test_sizes_and_switches() -> None:
    found = settings("serve", "--kv-cache-memory", "2G", "--max-body-size", "512k", "--no-enable-prefix-caching")
    assert (found["kv-cache-memory"], found["max-body-size"]) == (str(2 << 30), str(512 << 10))
    assert found["enable-prefix-caching"] == "false"
    assert settings("serve", "--trust-remote-code")["trust-remote-code"] == "true"
    assert settings("serve", TRUST_REMOTE_CODE="yes")["trust-remote-code"] == "true"


def test_the_built_in_model_is_handed_on_as_an_empty_text() -> None:
    assert settings("serve")["model"] == settings("serve", "tokenwire-tiny")["model"] == ""
    assert settings("serve", "org/name")["model"] == settings("serve", MODEL="org/name")["model"] == "org/name"


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "environ", "named"),
    [
        (["serve", "--port", "abc"], {}, "--port"),
        (["serve", "--port", "70000"], {}, "--port"),
        (["serve", "--port"], {}, "--port"),
        (["serve", "--kv-cache-memory", "2T"], {}, "--kv-cache-memory"),
        (["serve", "--dtype", "int8"], {}, "--dtype"),
        (["serve", "--shutdown-timeout", "nan"], {}, "--shutdown-timeout"),
        (["serve", "--stall-timeout", "0"], {}, "--stall-timeout"),
        (["serve", "--device", "tpu"], {}, "--device"),
        (["serve", "--tensor-parallel-size", "2"], {}, "--tensor-parallel-size: only 1 is supported so far"),
        (["serve", "--data-parallel-size", "2"], {}, "--data-parallel-size: only 1 is supported so far"),
        (["serve", "--tool-call-parser", "xml"], {}, "--tool-call-parser: expected one of auto, none, hermes"),
        (["api", "--engine", "ipc:///e"], {"REASONING_PARSER": "xml"}, "TOKENWIRE_REASONING_PARSER: expected one of"),
        (["engine", "--listen", "ipc:///e", "--reasoning-parser", "think"], {}, "--reasoning-parser"),
        (["serve"], {"MAX_NUM_SEQS": "many"}, "TOKENWIRE_MAX_NUM_SEQS"),
        (["serve"], {"ENABLE_PREFIX_CACHING": "maybe"}, "TOKENWIRE_ENABLE_PREFIX_CACHING"),
        (["serve", "--por", "1"], {}, "--por"),
        (["serve", "a", "b"], {}, "b"),
        (["frob"], {}, "frob"),
        ([], {}, "COMMAND"),
        (["engine"], {}, "--listen"),
        (["engine", "--listen", "/tmp/x"], {}, "--listen"),
        (["api"], {}, "--engine (or TOKENWIRE_ENGINE) is missing"),
        (["api"], {"ENGINE": " "}, "TOKENWIRE_ENGINE"),
        (["api", "--engine", "tcp://127.0.0.1:99999", "--insecure-tcp"], {}, "--engine: "),
        (["engine", "--listen", "tcp://127.0.0.1:99999", "--insecure-tcp"], {}, "--listen: "),
        (["api", "model"], {}, "model"),
        (["api", "--engine", "ipc:///a", "--engine", "ipc:///b"], {}, "--engine"),
        (["api"], {"ENGINE": "ipc:///a,ipc:///b"}, "TOKENWIRE_ENGINE: only one"),
        (["serve", "--config", "/no/such.toml"], {}, "/no/such.toml"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_culprit(
    arguments: list[str], environ: dict[str, str], named: str
) -> None:
    assert named in refusal(*arguments, **environ)


def test_a_key_is_never_repeated_to_the_terminal() -> None:
    told = refusal("serve", "--api-key", "secret,key")
    assert "--api-key" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("content", "named"),
    [("prot = 1", "prot"), ("port = ", "c.toml"), ("port = 'x'", "port"), ("[port]\na = 1", "port")],
)
def test_a_bad_file_names_its_entry(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(content)
    told = refusal("serve", "--config", str(file))
    assert named in told
    assert str(file) in told


# ---------------------------------------------------------------------------------------------------- hand-over


def test_each_child_is_told_its_own_options_and_keys_stay_off_command_lines(tmp_path: Path) -> None:
    found = settings("serve", "m", "--api-key", "k", "--port", "0", "--api-workers", "2", "--run-dir", str(tmp_path))
    with prepared(found, {"OMP_NUM_THREADS": "9"}, "1.2.3") as plan:
        assert plan.engine is not None
        engine, (frontend, second) = plan.engine, plan.frontends
        assert engine.variables["TOKENWIRE_LISTEN"] == frontend.variables["TOKENWIRE_ENGINE"]
        assert engine.variables["TOKENWIRE_LISTEN"] == f"ipc://{tmp_path}/engine.sock"
        assert engine.variables["TOKENWIRE_MODEL"] == "m"
        assert engine.environ["OMP_NUM_THREADS"] == "9"
        assert frontend.environ["TOKENIZERS_PARALLELISM"] == "false"
        assert engine.descriptors == ()
        assert frontend.variables["TOKENWIRE_API_KEY"] == "k"
        assert frontend.variables["TOKENWIRE_LISTEN_FD"] == str(frontend.descriptors[0])
        own = {f"TOKENWIRE_{end}_FD" for end in ("GIVE", "TAKE")}  # of the passage between those of one place
        assert [int(spec.variables[name]) for spec in (frontend, second) for name in sorted(own)] == [
            *frontend.descriptors[2:],
            *second.descriptors[2:],
        ]
        assert frontend.variables["TOKENWIRE_BOARD_FD"] == str(frontend.descriptors[1])
        assert len({*frontend.descriptors, *second.descriptors}) == 6
        assert second.name == "frontend 2"
        assert {name for name in second.variables if second.variables[name] != frontend.variables[name]} == own
        assert "TOKENWIRE_API_KEY" not in engine.variables
        assert "TOKENWIRE_BLOCK_SIZE" not in frontend.variables
        assert all("k" not in spec.command for spec in (engine, frontend))
        assert engine.command[1:] == ("-m", "engine_core")
        assert frontend.command[1:] == ("-m", "api_server")


def test_the_engine_alone_counts_epochs_from_the_time_and_may_serve_its_health(tmp_path: Path) -> None:
    with prepared(settings("engine", "--listen", f"ipc://{tmp_path}/e"), {}, "1") as plan:
        assert plan.first_epoch > 1_700_000_000_000
        assert plan.frontends == ()
    with prepared(settings("engine", "--listen", f"ipc://{tmp_path}/e", "--health-port", "0"), {}, "1") as plan:
        assert plan.frontends[0].variables["TOKENWIRE_HEALTH_ONLY"] == "true"
        assert plan.frontends_last


def test_parsers_are_the_frontends_own() -> None:
    assert (TOOL_PARSERS, REASONING_PARSERS) == (select.TOOL_PARSERS, select.REASONING_PARSERS)
    found = settings("serve", "--port", "0", "--tool-call-parser", "hermes", REASONING_PARSER="none")
    with prepared(found, {}, "1") as plan:
        assert plan.engine is not None
        config = from_environ(plan.frontends[0].variables)
        assert (config.tool_call_parser, config.reasoning_parser) == ("hermes", "none")
        assert not {"TOKENWIRE_TOOL_CALL_PARSER", "TOKENWIRE_REASONING_PARSER"} & plan.engine.variables.keys()


def test_the_user_s_word_on_tokenizer_threads_counts() -> None:
    with prepared(
        settings("api", "--engine", "ipc:///x/e", "--port", "0"), {"TOKENIZERS_PARALLELISM": "1"}, ""
    ) as plan:
        assert plan.frontends[0].environ["TOKENIZERS_PARALLELISM"] == "1"


def test_frontends_alone_have_no_engine() -> None:
    with prepared(settings("api", "--engine", "ipc:///x/e.sock", "--port", "0"), {}, "1") as plan:
        assert plan.engine is None
        assert plan.frontends[0].variables["TOKENWIRE_ENGINE"] == "ipc:///x/e.sock"


def test_tcp_needs_a_word_and_loopback() -> None:
    assert refusal("api", "--engine", "tcp://127.0.0.1:5").startswith("--engine: ")
    assert refusal("api", "--engine", "tcp://192.0.2.1:5", "--insecure-tcp").startswith("--engine: ")
    assert refusal("engine", "--listen", "tcp://127.0.0.1:5").startswith("--listen: ")
    assert refusal("api", ENGINE="tcp://127.0.0.1:5").startswith("TOKENWIRE_ENGINE: ")
    allowed = settings("api", "--engine", "tcp://127.0.0.1:5", "--insecure-tcp", "--port", "0")
    with prepared(allowed, {}, "1") as plan:
        assert plan.frontends[0].variables["TOKENWIRE_INSECURE_TCP"] == "true"


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(CannotStart, match=f"port {port}"),
            prepared(settings("serve", "--port", str(port)), {}, "1"),
        ):
            pass


def test_a_fresh_folder_is_private_and_goes_away(tmp_path: Path) -> None:
    with run_folder(None, {"XDG_RUNTIME_DIR": str(tmp_path)}) as folder:
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def left_behind(parent: Path, name: str, age_s: float = 0.0, *, lock: bool = True) -> Path:
    folder = parent / name
    folder.mkdir(mode=0o700)
    if lock:
        (folder / "engine.sock.lock").touch()
    then_s = time.time() - age_s
    os.utime(folder, (then_s, then_s))
    return folder


def test_folders_of_killed_supervisors_are_cleared_away(tmp_path: Path) -> None:
    gone = [left_behind(tmp_path, "tokenwire-abcdefgh"), left_behind(tmp_path, "tokenwire-a_cd3fgh", 90.0, lock=False)]
    kept = [
        left_behind(tmp_path, "tokenwire-young123", lock=False),  # its supervisor is about to take it
        left_behind(tmp_path, "tokenwire-not-ours", 90.0),
        left_behind(tmp_path, "other-abcdefgh", 90.0),
        left_behind(tmp_path, "tokenwire-running1", 90.0),
    ]
    open_to_all = left_behind(tmp_path, "tokenwire-openopen", 90.0)
    open_to_all.chmod(0o755)
    (tmp_path / "tokenwire-linklink").symlink_to(kept[2])
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with (kept[3] / "engine.sock.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with run_folder(None, environ) as mine, run_folder(None, environ) as another:
            assert all(each.exists() for each in (*kept, open_to_all, mine, another))
    assert not any(folder.exists() for folder in gone)
    assert (tmp_path / "tokenwire-linklink").is_symlink()


def test_the_folder_of_a_killed_process_goes_with_the_next_start(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    code = (
        "import sys, deploy.sockets as sockets\n"
        "from protocol.channel import EngineChannel\n"
        f"with sockets.run_folder(None, {environ!r}) as folder, EngineChannel(f'ipc://{{folder}}/engine.sock'):\n"
        "    print(folder, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with run_folder(None, environ):
            assert (left / "engine.sock").exists()
        process.kill()
    assert left.exists()
    with run_folder(None, environ):
        assert not left.exists()


def test_a_supervisor_that_runs_keeps_its_folder_while_its_engine_is_away(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with run_folder(None, environ) as mine:
        (mine / "engine.sock.lock").touch()
        os.utime(mine, (0, 0))
        with run_folder(None, environ):
            assert mine.exists()


def test_a_chosen_folder_is_closed_to_others_and_stays(tmp_path: Path) -> None:
    chosen = tmp_path / "run"
    chosen.mkdir(mode=0o755)
    with run_folder(str(chosen), {}):
        assert stat.S_IMODE(chosen.stat().st_mode) == 0o700
    assert chosen.exists()


def test_a_folder_too_deep_for_sockets_is_refused_or_passed_over(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(CannotStart, match="--run-dir"), run_folder(str(deep), {}):
        pass
    with run_folder(None, {"XDG_RUNTIME_DIR": str(deep)}) as folder:
        assert folder.parent != deep


def test_a_core_is_left_to_the_frontends() -> None:
    defaults = thread_defaults()
    assert int(defaults["OMP_NUM_THREADS"]) >= 1
    assert ("OMP_WAIT_POLICY" in defaults) == (defaults["OMP_NUM_THREADS"] == "1" and usable_cores() == 1)
