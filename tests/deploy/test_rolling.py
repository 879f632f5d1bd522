"""SIGHUP: frontends are replaced one by one, the new one before the old. Over stand-in children."""

import os
import signal
from typing import Any

import pytest

from tests.deploy.supervised import Start, Supervised, alive, until


def log(supervised: Supervised) -> str:
    return supervised.log.read_text()


def pids(supervised: Supervised, name: str) -> list[int]:
    return [note["pid"] for note in supervised.notes(name)]


def taken_over(supervised: Supervised, name: str, times: int = 1) -> None:
    until(lambda: log(supervised).count(f"{name}: pid ") >= times)


def test_new_frontends_take_over_one_by_one_and_the_engine_stays(start: Start) -> None:
    supervised = start(engine="well", frontends=["busy", "well"])
    supervised.until_ready()
    for times in (1, 2, 3):
        supervised.signal(signal.SIGHUP)
        until(lambda times=times: log(supervised).count("rolled: all frontends are new") == times)  # type: ignore[misc]
        assert len(supervised.running()) == 3
        for name in ("frontend0", "frontend1"):
            *olds, new = pids(supervised, name)
            assert len(olds) == times
            assert alive(new)
    assert len(pids(supervised, "engine")) == 1
    *_, first, last = [line for line in log(supervised).splitlines() if "has taken over" in line]
    new, old = pids(supervised, "frontend0")[-1], pids(supervised, "frontend0")[-2]
    assert first.endswith(f"frontend0: pid {new} has taken over from pid {old}")
    assert "frontend1: pid" in last
    assert not (supervised.folder / "frontend0.told").exists(), "SIGTERM would have been a drain"
    supervised.signal(signal.SIGTERM)
    assert supervised.wait() == 0
    assert supervised.running() == []


def test_successors_know_that_they_are(start: Start) -> None:
    supervised = start(frontends=["well"])
    supervised.until_ready()
    supervised.signal(signal.SIGHUP)
    taken_over(supervised, "frontend0")
    first, second = (note["variables"] for note in supervised.notes("frontend0"))
    assert "TOKENWIRE_SUCCESSOR" not in first
    assert second["TOKENWIRE_SUCCESSOR"] == "true"


def test_however_often_it_is_asked_for_in_a_roll_one_more_follows(start: Start) -> None:
    supervised = start(frontends=["stubborn"], limit_s=1000.0)
    supervised.until_ready()
    for times in (1, 2, 3):  # the second follows by itself
        if times != 2:
            supervised.signal(signal.SIGHUP)
        taken_over(supervised, "frontend0", times)
        if times == 1:
            for _ in range(5):
                supervised.signal(signal.SIGHUP)
        os.kill(pids(supervised, "frontend0")[-2], signal.SIGKILL)
        until(lambda times=times: log(supervised).count("rolled: all") == times)  # type: ignore[misc]
    assert len(pids(supervised, "frontend0")) == 4


def test_an_old_frontend_that_outstays_its_time_is_killed(start: Start) -> None:
    supervised = start(frontends=["stubborn"], limit_s=0.2, farewell_s=0.2)
    supervised.until_ready()
    supervised.signal(signal.SIGHUP)
    until(lambda: "rolled: all" in log(supervised))
    assert supervised.running() == pids(supervised, "frontend0")[1:]


@pytest.mark.parametrize(
    ("mode", "limit_s", "why"),
    [
        ("well/refuses", 20.0, "exited with 3 before it was ready"),
        ("well/breaks", 20.0, "exited with 1 before it was ready"),
        ("well/loading", 0.3, "was not ready within 0.3 s"),
    ],
)
def test_a_roll_is_given_up_when_a_new_frontend_does_not_come_up(
    start: Start, mode: str, limit_s: float, why: str
) -> None:
    supervised = start(engine="well", frontends=[mode, "well"], start_limit_s=limit_s)
    supervised.until_ready()
    before = supervised.running()
    for times in (1, 2):
        supervised.signal(signal.SIGHUP)
        until(lambda times=times: log(supervised).count("the roll is given up") == times)  # type: ignore[misc]
        until(lambda: supervised.running() == before)
        told = [line.rpartition("frontend0 (pid ")[2] for line in log(supervised).splitlines() if "given up" in line]
        assert {line.partition(") ")[2] for line in told} == {why}
        assert len({line.partition(") ")[0] for line in told}) == times
        assert len(pids(supervised, "frontend1")) == 1
    assert "rolled" not in log(supervised)
    supervised.signal(signal.SIGTERM)
    assert supervised.wait() == 0


def test_a_frontend_that_dies_while_its_successor_starts_is_replaced_at_once(start: Start) -> None:
    supervised = start(frontends=["well/loading"], start_limit_s=1000.0)
    supervised.until_ready()
    supervised.signal(signal.SIGHUP)
    until(lambda: len(pids(supervised, "frontend0")) == 2)
    os.kill(pids(supervised, "frontend0")[0], signal.SIGKILL)
    until(lambda: len(pids(supervised, "frontend0")) == 3)
    until(lambda: supervised.running() == pids(supervised, "frontend0")[2:])
    assert "died while its successor started" in log(supervised)


@pytest.mark.parametrize("mode", ["well/loading", "busy"])
def test_a_signal_during_a_roll_ends_everything(start: Start, mode: str) -> None:
    supervised = start(engine="well", frontends=[mode, "well"], start_limit_s=1000.0)
    supervised.until_ready()
    supervised.signal(signal.SIGHUP)
    until(lambda: len(pids(supervised, "frontend0")) == 2)
    supervised.signal(signal.SIGTERM)
    assert supervised.wait() == 0
    assert supervised.running() == []


def test_a_signal_reaches_those_that_have_been_replaced(start: Start) -> None:
    supervised = start(frontends=["stubborn"], limit_s=1000.0)
    supervised.until_ready()
    supervised.signal(signal.SIGHUP)
    taken_over(supervised, "frontend0")
    until(lambda: (supervised.folder / "frontend0.retired").exists())
    supervised.signal(signal.SIGTERM)
    for pid in pids(supervised, "frontend0"):
        until(lambda pid=pid: (supervised.folder / f"frontend0.{pid}.told").exists())  # type: ignore[misc]
    supervised.signal(signal.SIGTERM)
    assert supervised.wait() == 0
    assert supervised.running() == []


@pytest.mark.parametrize("mode", ["well/loading", "stubborn"])
def test_nothing_outlives_a_supervisor_that_is_killed_during_a_roll(start: Start, mode: str) -> None:
    supervised = start(engine="stubborn", frontends=[mode], limit_s=1000.0, start_limit_s=1000.0)
    supervised.until_ready()
    supervised.signal(signal.SIGHUP)
    until(lambda: len(pids(supervised, "frontend0")) == 2)
    supervised.process.kill()
    supervised.wait()
    until(lambda: supervised.running() == [])


@pytest.mark.parametrize(
    "plan", [{"engine": "well"}, {"engine": "well", "frontends": ["well"], "frontends_last": True}]
)
def test_where_there_is_nothing_to_roll_a_hangup_is_only_told(start: Start, plan: dict[str, Any]) -> None:
    supervised = start(**plan)
    supervised.until_ready()
    supervised.signal(signal.SIGHUP)
    until(lambda: "no frontends here to be replaced" in log(supervised))
    assert len(supervised.running()) == len(supervised.notes())
