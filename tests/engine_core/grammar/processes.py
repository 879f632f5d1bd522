"""The processes that an engine has started for grammars, found from outside."""

from pathlib import Path

from tests.engine_core.grammar.engine import Engine


def nursery(engine: Engine) -> int:
    pid = engine.grammars.pool.processes.nursery_pid
    assert pid is not None
    return pid


def followers(engine: Engine) -> list[int]:
    """Process ids."""
    pid = engine.grammars.pool.processes.nursery_pid
    return [] if pid is None else children(pid)


def children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [child for child in map(int, listed) if is_alive(child)]


def is_alive(pid: int) -> bool:
    """Not a zombie either."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
