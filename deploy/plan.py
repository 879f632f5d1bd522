"""From settings to processes: which commands run, in which environment, on which sockets."""

import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from deploy.children import ChildSpec
from deploy.options import BUILT_IN_MODEL
from deploy.settings import Settings
from deploy.sockets import ENGINE_SOCKET, board, listen, run_folder
from deploy.supervisor import Plan
from protocol.handover import Passage, passage

ENGINE_COMMAND: Final = (sys.executable, "-m", "engine_core")
API_COMMAND: Final = (sys.executable, "-m", "api_server")
FRONTEND_DEFAULTS: Final = {"TOKENIZERS_PARALLELISM": "false"}  # else a thread per core for a prompt or two
CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


class Shared(NamedTuple):
    """What all frontends of one address inherit."""

    listener: socket.socket
    board: int  # descriptor of the memory


@contextmanager
def prepared(settings: Settings, environ: Mapping[str, str], version: str) -> Iterator[Plan]:
    """The plan of the command, with its sockets and folder for as long as it runs. Raises CannotStart."""
    with ExitStack() as stack:
        match settings.command:
            case "serve":
                listener = stack.enter_context(listen(settings["host"], settings.integer("port")))
                folder = stack.enter_context(run_folder(settings.get("run-dir"), environ))
                endpoint = f"ipc://{folder / ENGINE_SOCKET}"
                shared = Shared(listener, stack.enter_context(board()))
                frontends = _frontends(
                    settings, environ, shared, {"ENGINE": endpoint, "MODEL_NAME": _name(settings)}, stack
                )
                yield _serve(settings, environ, version, listener, folder, endpoint, frontends)
            case "engine":
                folder = stack.enter_context(run_folder(settings.get("run-dir"), environ))
                health = settings.get("health-port")
                socket = None if health is None else stack.enter_context(listen(settings["host"], int(health)))
                yield _engine_only(settings, environ, version, folder, socket)
            case _:
                listener = stack.enter_context(listen(settings["host"], settings.integer("port")))
                shared = Shared(listener, stack.enter_context(board()))
                frontends = _frontends(settings, environ, shared, {"ENGINE": settings["engine"]}, stack)
                yield _api_only(settings, version, listener, frontends)


def _serve(
    settings: Settings,
    environ: Mapping[str, str],
    version: str,
    listener: socket.socket,
    folder: Path,
    endpoint: str,
    frontends: tuple[ChildSpec, ...],
) -> Plan:
    return Plan(
        banner=f"tokenwire {version} serves {_name(settings)} at {_url(listener)}",
        engine=_engine(settings, environ, endpoint, folder, 1),
        frontends=frontends,
        frontend_limit_s=max(settings.seconds("shutdown-timeout"), settings.seconds("drain-grace")),
    )


def _engine_only(
    settings: Settings, environ: Mapping[str, str], version: str, folder: Path, health: socket.socket | None
) -> Plan:
    endpoint = settings["listen"]
    probes: tuple[ChildSpec, ...] = ()
    if health is not None:
        variables = settings.variables_for("api") | {
            "TOKENWIRE_ENGINE": endpoint,
            "TOKENWIRE_LISTEN_FD": str(health.fileno()),
            "TOKENWIRE_HEALTH_ONLY": "true",
        }
        probes = (_frontend("health frontend", variables, (health.fileno(),), environ),)
    epoch = int(time.time() * 1000)  # frontends elsewhere may remember an earlier life of this endpoint
    told = "" if health is None else f", health at {_url(health)}"
    return Plan(
        banner=f"tokenwire {version} runs an engine core of {_name(settings)} at {endpoint}{told}",
        engine=_engine(settings, environ, endpoint, folder, epoch),
        frontends=probes,
        first_epoch=epoch,
        frontends_last=True,
        engine_limit_s=settings.seconds("shutdown-timeout"),
    )


def _api_only(settings: Settings, version: str, listener: socket.socket, frontends: tuple[ChildSpec, ...]) -> Plan:
    return Plan(
        banner=f"tokenwire {version} serves the engine at {settings['engine']} at {_url(listener)}",
        frontends=frontends,
        frontend_limit_s=max(settings.seconds("shutdown-timeout"), settings.seconds("drain-grace")),
    )


def _engine(settings: Settings, environ: Mapping[str, str], endpoint: str, folder: Path, first_epoch: int) -> ChildSpec:
    variables = settings.variables_for("engine") | {
        "TOKENWIRE_LISTEN": endpoint,
        "TOKENWIRE_RUN_DIR": str(folder),
        "TOKENWIRE_FIRST_EPOCH": str(first_epoch),
    }
    return ChildSpec("engine core", ENGINE_COMMAND, variables, environ=thread_defaults() | dict(environ))


def _frontends(
    settings: Settings, environ: Mapping[str, str], shared: Shared, more: Mapping[str, str], stack: ExitStack
) -> tuple[ChildSpec, ...]:
    """One spec per place, whose frontends follow each other; `stack` keeps the passages between them. `more` are
    variables, without the prefix."""
    more = {**more, "LISTEN_FD": str(shared.listener.fileno()), "BOARD_FD": str(shared.board)}
    variables = settings.variables_for("api") | {f"TOKENWIRE_{name}": value for name, value in more.items()}
    count = settings.integer("api-workers")
    names = [f"frontend {slot + 1}" if count > 1 else "frontend" for slot in range(count)]
    return tuple(_successive(name, variables, shared, stack.enter_context(passage()), environ) for name in names)


def _successive(
    name: str, variables: Mapping[str, str], shared: Shared, way: Passage, environ: Mapping[str, str]
) -> ChildSpec:
    ends = {"TOKENWIRE_GIVE_FD": str(way.give.fileno()), "TOKENWIRE_TAKE_FD": str(way.take.fileno())}
    descriptors = (shared.listener.fileno(), shared.board, way.give.fileno(), way.take.fileno())
    return _frontend(name, {**variables, **ends}, descriptors, environ)


def _frontend(
    name: str, variables: Mapping[str, str], descriptors: tuple[int, ...], environ: Mapping[str, str]
) -> ChildSpec:
    return ChildSpec(name, API_COMMAND, variables, descriptors, FRONTEND_DEFAULTS | dict(environ))


def _name(settings: Settings) -> str:
    return settings.get("served-model-name") or settings["model"] or BUILT_IN_MODEL


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# ---------------------------------------------------------------------------------------------------- threads


def thread_defaults() -> dict[str, str]:
    """Threads and memory of the engine, unless the user's environment says otherwise. They are read when a process
    starts, so only its parent can set them.

    A core stays free for the frontend; where there is none, waiting threads sleep, because spinning ones collapse under
    contention. Large pages and rare trimming gave 5-10 % on CPU; glibc takes no mmap threshold above 32 MiB.
    """
    cores = usable_cores()
    threads = max(1, cores - 1)
    return {
        "OMP_NUM_THREADS": str(threads),
        **({"OMP_WAIT_POLICY": "PASSIVE"} if threads == cores else {}),
        "THP_MEM_ALLOC_ENABLE": "1",
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "TOKENIZERS_PARALLELISM": "false",
    }


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota where one is set."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, _, period = CPU_QUOTA.read_text().strip().partition(" ")
        return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return cores
