"""Stands in for a child process, and runs a Supervisor over such children: `python -m tests.deploy.stand_in ROLE …`.

A child notes its life in a file of its own in the folder STAND_IN, and behaves as its mode says. It is kept free of
heavy imports, so that a test with ten starts takes a second.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from protocol.lifeline import LIFELINE_VARIABLE, hang_on_parent

BUSY_S = 0.4  # how long a "busy" child takes to drain


def child(name: str, mode: str) -> int:
    """Modes: well; busy (drains slowly); stubborn (ignores SIGTERM); refuses (exit 3); breaks (exit 1); loading (never
    ready); brief (ready, then dead at once). `X/Y` is X, and Y where it succeeds another."""
    if "/" in mode:
        mode = mode.split("/")["TOKENWIRE_SUCCESSOR" in os.environ]
    lifeline = os.environ.get(LIFELINE_VARIABLE)
    hang_on_parent()
    life = {
        "name": name,
        "pid": os.getpid(),
        "epoch": os.environ.get("TOKENWIRE_EPOCH"),
        "session": os.getsid(0),
        "lifeline": lifeline,
        "variables": {key: value for key, value in os.environ.items() if key.startswith(("TOKENWIRE_", "OMP_"))},
        "fds": sorted(int(each) for each in os.listdir("/proc/self/fd")),
    }
    path = Path(os.environ["STAND_IN"], f"{name}.{time.monotonic_ns()}.json")
    path.with_suffix(".part").write_text(json.dumps(life))
    path.with_suffix(".part").rename(path)
    signals: list[int] = []

    def told(number: int, frame: object) -> None:
        signals.append(number)
        what = "told" if number == signal.SIGTERM else "retired"
        note(name, what)
        note(f"{name}.{os.getpid()}", what)

    signal.signal(signal.SIGTERM, told)
    signal.signal(signal.SIGUSR2, told)
    if mode == "refuses":
        print(f"{name}: the model is missing", file=sys.stderr)
        return 3
    if mode == "breaks":
        return 1
    if mode != "loading":
        ready = int(os.environ["TOKENWIRE_READY_FD"])
        os.write(ready, b"1")
        os.close(ready)
    if mode == "brief":
        return 1
    code = _until_told(mode, signals)
    note(name, "ended")
    return code


def _until_told(mode: str, signals: list[int]) -> int:
    while not signals or mode == "stubborn":
        time.sleep(0.005)
    ends_s = time.monotonic() + (BUSY_S if mode == "busy" else 0)
    while time.monotonic() < ends_s and len(signals) < 2:
        time.sleep(0.005)
    return 0


def note(name: str, what: str) -> None:
    Path(os.environ["STAND_IN"], f"{name}.{what}").write_text(str(time.monotonic_ns()))


def supervise(plan_text: str) -> int:
    """A Supervisor over stand-ins; the plan is JSON: engine's mode, frontends' modes, time limits."""
    import asyncio

    from deploy.children import ChildSpec
    from deploy.supervisor import Plan, Supervisor
    from protocol.logs import set_up_logging

    told = json.loads(plan_text)

    def spec(name: str, mode: str) -> ChildSpec:
        return ChildSpec(name, (sys.executable, "-m", "tests.deploy.stand_in", "child", name, mode), {"A": name})

    engine = told.get("engine")
    plan = Plan(
        banner="everything runs",
        engine=None if engine is None else spec("engine", engine),
        frontends=tuple(spec(f"frontend{slot}", mode) for slot, mode in enumerate(told.get("frontends", []))),
        frontends_last=told.get("frontends_last", False),
        engine_limit_s=told.get("engine_limit_s", 0.0),
        frontend_limit_s=told.get("limit_s", 10.0),
        farewell_s=told.get("farewell_s", 5.0),
        start_limit_s=told.get("start_limit_s", 20.0),
        backoff_s=tuple(told.get("backoff_s", [0.0])),
        first_epoch=told.get("first_epoch", 1),
    )

    async def run() -> int:
        return await Supervisor(plan).run()

    set_up_logging("supervisor", "info", "text")
    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(child(*sys.argv[2:]) if sys.argv[1] == "child" else supervise(sys.argv[2]))
