"""The supervisor over stand-in children: real processes, signals and pipes; only their work is made up."""

import os
import signal
import time
from typing import Any

import pytest

from tests.deploy.supervised import Start, alive, until

# ---------------------------------------------------------------------------------------------------- children


def test_children_have_sessions_and_variables_of_their_own(start: Start) -> None:
    supervised = start(engine="well", frontends=["well", "well"])
    supervised.until_ready()
    notes = supervised.notes()
    assert sorted(note["name"] for note in notes) == ["engine", "frontend0", "frontend1"]
    assert all(note["session"] == note["pid"] for note in notes)
    for note in notes:
        assert note["lifeline"] is not None
        assert note["variables"]["OMP_NUM_THREADS"] == "7"
        assert "TOKENWIRE_LEFT_OVER" not in note["variables"]
    assert [note["epoch"] for note in notes if note["name"] == "engine"] == ["1"]
    assert [note["epoch"] for note in notes if note["name"] != "engine"] == [None, None]
    assert all(len(note["fds"]) <= 7 for note in notes)  # stdio, lifeline, readiness, and the listing's own


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_with_0(start: Start, number: signal.Signals) -> None:
    supervised = start(engine="well", frontends=["busy", "well"])
    supervised.until_ready()
    supervised.signal(number)
    assert supervised.wait() == 0
    assert supervised.running() == []


def test_the_engine_outlives_the_drain_of_the_frontends(start: Start) -> None:
    supervised = start(engine="well", frontends=["busy"])
    supervised.until_ready()
    supervised.signal(signal.SIGTERM)
    assert supervised.wait() == 0
    ended = {name: int((supervised.folder / f"{name}.ended").read_text()) for name in ("engine", "frontend0")}
    assert ended["frontend0"] < ended["engine"]


def test_frontends_that_only_tell_of_the_engine_end_after_it(start: Start) -> None:
    """They are told at once, so that they say so, and are there until the engine has ended."""
    supervised = start(engine="busy", frontends=["stubborn"], frontends_last=True, engine_limit_s=10.0, limit_s=0.0)
    supervised.until_ready()
    (frontend,) = (note["pid"] for note in supervised.notes("frontend0"))
    supervised.signal(signal.SIGTERM)
    until(lambda: (supervised.folder / "frontend0.told").exists())
    until(lambda: not alive(frontend))
    assert (supervised.folder / "engine.ended").exists()
    assert supervised.wait() == 0
    assert supervised.running() == []


def test_a_drain_that_takes_too_long_is_cut(start: Start) -> None:
    supervised = start(engine="well", frontends=["stubborn"], limit_s=0.2, farewell_s=0.2)
    supervised.until_ready()
    supervised.signal(signal.SIGTERM)
    assert supervised.wait() == 0
    assert supervised.running() == []


def test_a_second_signal_means_now(start: Start) -> None:
    supervised = start(engine="well", frontends=["stubborn"], limit_s=1000.0)
    supervised.until_ready()
    supervised.signal(signal.SIGTERM)
    until(lambda: "a second signal ends them" in supervised.log.read_text())
    began_s = time.monotonic()
    supervised.signal(signal.SIGTERM)
    assert supervised.wait() == 0
    assert time.monotonic() - began_s < 10
    assert supervised.running() == []


def test_a_signal_while_the_engine_loads_ends_everything(start: Start) -> None:
    supervised = start(engine="loading", frontends=["well"])
    until(lambda: len(supervised.notes()) == 2)
    supervised.signal(signal.SIGTERM)
    assert supervised.wait() == 0
    assert supervised.running() == []
    assert "everything runs" not in supervised.log.read_text()


@pytest.mark.parametrize("mode", ["well", "stubborn", "loading"])
def test_nothing_outlives_a_supervisor_that_was_killed(start: Start, mode: str) -> None:
    supervised = start(engine=mode, frontends=["stubborn", "well"])
    until(lambda: len(supervised.notes()) == 3)
    supervised.process.kill()
    supervised.wait()
    until(lambda: supervised.running() == [], deadline_s=5.0)


# ---------------------------------------------------------------------------------------------------- deaths


def test_an_engine_that_dies_is_started_again_with_the_next_epoch(start: Start) -> None:
    supervised = start(engine="well", frontends=["well"], first_epoch=40)
    supervised.until_ready()
    for expected in (41, 42):
        os.kill(supervised.notes("engine")[-1]["pid"], signal.SIGKILL)
        until(lambda expected=expected: supervised.notes("engine")[-1]["epoch"] == str(expected))  # type: ignore[misc]
    assert len(supervised.notes("frontend")) == 1
    assert "was killed by SIGKILL" in supervised.log.read_text()
    supervised.signal(signal.SIGTERM)
    assert supervised.wait() == 0


def test_a_frontend_that_dies_is_started_again_and_nobody_else(start: Start) -> None:
    supervised = start(engine="well", frontends=["well", "well"])
    supervised.until_ready()
    os.kill(supervised.notes("frontend0")[0]["pid"], signal.SIGKILL)
    until(lambda: len(supervised.notes("frontend0")) == 2)
    assert (len(supervised.notes("frontend1")), len(supervised.notes("engine"))) == (1, 1)


@pytest.mark.parametrize("plan", [{"engine": "refuses", "frontends": ["well"]}, {"frontends": ["well", "refuses"]}])
def test_a_child_that_cannot_start_ends_everything_with_3_and_the_last_word(start: Start, plan: Any) -> None:
    supervised = start(**plan)
    assert supervised.wait() == 3
    assert supervised.running() == []
    assert supervised.log.read_text().splitlines()[-1].endswith(": the model is missing")


def test_a_child_that_breaks_before_it_is_ready_is_not_tried_again(start: Start) -> None:
    supervised = start(engine="breaks", frontends=["well"])
    assert supervised.wait() == 3
    assert len(supervised.notes("engine")) == 1
    assert supervised.log.read_text().splitlines()[-1].endswith("exited with 1 before it was ready")


def test_a_child_that_dies_young_is_not_tried_for_ever(start: Start) -> None:
    supervised = start(frontends=["brief"])
    assert supervised.wait() == 3
    assert len(supervised.notes("frontend")) == 5
    assert supervised.log.read_text().splitlines()[-1].endswith("5 starts in a row have failed")


def test_an_engine_killed_while_it_loads_is_tried_again(start: Start) -> None:
    supervised = start(engine="loading", frontends=["well"])
    until(lambda: len(supervised.notes("engine")) == 1)
    os.kill(supervised.notes("engine")[0]["pid"], signal.SIGKILL)
    until(lambda: len(supervised.notes("engine")) == 2)
    assert supervised.notes("engine")[1]["epoch"] == "2"


def test_starts_are_backed_off_and_steadiness_forgives() -> None:
    """The back-off itself, with made-up lives."""
    from deploy.fate import Fatal, Fate

    class Life:
        pid = 1
        ready = True
        lived_s = 30.0

    fate = Fate("engine", (0.0, 1.0, 2.0))
    life: Any = Life()
    assert [fate.after(life, -9) for _ in range(5)] == [0.0, 1.0, 2.0, 2.0, 2.0]
    life.lived_s = 100.0
    assert fate.after(life, 1) == 0.0
    life.ready = False
    for _ in range(4):
        fate.after(life, 3)
    with pytest.raises(Fatal, match="5 starts in a row"):
        fate.after(life, 3)
