"""How long a resumable request is kept, and at what price."""

from typing import Any

import pytest

from engine_core import shelf
from engine_core.request import Request
from engine_core.shelf import Shelf
from protocol.messages import FinishReason, TokenLogprobs
from protocol.sampling import SamplingParams

GRACE_S = 10.0
KEY = b"k" * 16


def requests(rid: str, n: int = 1, tokens: int = 3, **sampling: Any) -> list[Request]:
    params = SamplingParams(max_tokens=100, **sampling)
    return [Request(handle, rid, [1] * tokens, params, key=KEY, choice=handle) for handle in range(n)]


def end(*some: Request) -> None:
    for request in some:
        request.ended, request.finish = True, FinishReason.STOP


def kept(*rids: str, n: int = 1, **more: Any) -> tuple[Shelf, dict[str, list[Request]]]:
    found, some = Shelf(GRACE_S), {rid: requests(rid, n, **more) for rid in rids}
    for each in some.values():
        found.keep(KEY, b"meta", each)
    return found, some


def names(found: Shelf, *rids: str) -> list[str]:
    return [rid for rid in rids if found.find(rid, KEY) is not None]


def test_it_is_found_by_its_name_and_its_key() -> None:
    found, some = kept("a")
    here = found.find("a", KEY)
    assert here is not None
    assert (here.requests, here.meta) == (some["a"], b"meta")
    assert found.find("a", b"") is None
    assert found.find("b", KEY) is None


def test_what_runs_and_is_read_has_all_the_time_there_is() -> None:
    found, _ = kept("a")
    assert found.next_s is None
    assert found.expired(1e9) == []
    assert names(found, "a") == ["a"]


def test_what_nobody_reads_runs_for_its_grace() -> None:
    found, some = kept("a", n=2)
    found.left(some["a"], 100.0)
    assert found.next_s == 110.0
    assert found.expired(109.9) == []
    assert found.expired(110.0) == some["a"]
    assert names(found, "a") == []
    assert len(found) == 0


def test_a_new_reader_ends_the_grace() -> None:
    found, some = kept("a")
    found.left(some["a"], 100.0)
    here = found.find("a", KEY)
    assert here is not None
    found.read(here)
    assert found.expired(1e9) == []
    assert names(found, "a") == ["a"]


def test_leaving_twice_is_leaving_once() -> None:
    found, some = kept("a")
    found.left(some["a"], 100.0)
    found.left(some["a"], 105.0)
    assert found.expired(110.0) == some["a"]


def test_the_grace_begins_anew_with_the_last_end() -> None:
    found, some = kept("a", n=2)
    first, second = some["a"]
    found.left(some["a"], 100.0)
    end(first)
    found.ended([first], 104.0)
    end(second)
    found.ended([second], 108.0)
    assert found.expired(117.9) == []
    assert names(found, "a") == ["a"]
    assert found.expired(118.0) == []  # nothing of it runs
    assert names(found, "a") == []


def test_reading_what_has_ended_does_not_keep_it_for_longer() -> None:
    found, some = kept("a")
    end(*some["a"])
    found.ended(some["a"], 100.0)
    here = found.find("a", KEY)
    assert here is not None
    found.read(here)
    found.left(some["a"], 105.0)
    found.expired(110.0)
    assert names(found, "a") == []


def test_those_that_run_on_end_by_themselves_at_their_grace_s_end() -> None:
    found, some = kept("a", n=2)
    first, second = some["a"]
    end(first)
    found.ended([first], 100.0)
    found.left([second], 101.0)
    assert found.expired(111.0) == [second]


def test_dropped_is_gone() -> None:
    found, some = kept("a", "b", n=2)
    found.left(some["a"], 1.0)
    found.drop([some["a"][0]])
    assert names(found, "a", "b") == ["b"]
    assert not found.holds(some["a"][1])
    found.left(some["a"], 2.0)
    found.ended(some["a"], 2.0)
    assert found.expired(1e9) == []


def test_the_oldest_of_those_that_have_ended_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "ENDED_BYTES", 100_000)
    found, some = kept("runs", "a", "b", "c", tokens=10_000)
    found.left(some["runs"], 1.0)
    for time_s, rid in enumerate("abc"):
        end(*some[rid])
        found.ended(some[rid], float(time_s))
    assert names(found, "runs", "a", "b", "c") == ["runs", "b", "c"]
    found.expired(1e9)
    assert (len(found), found._nbytes) == (0, 0)


def test_one_that_is_too_large_is_not_kept_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "ENDED_BYTES", 100_000)
    found, some = kept("small", "large")
    some["large"][0].tokens.extend([1] * 50_000)
    for rid in ("small", "large"):
        end(*some[rid])
        found.ended(some[rid], 1.0)
    assert names(found, "small", "large") == []  # the oldest goes first, and that was not enough


def test_log_probabilities_count() -> None:
    found, some = kept("a", "b", logprobs=2)
    some["b"][0].logprobs = [TokenLogprobs(-1.0, [1, 2], [-1.0, -2.0])] * 1000
    end(*some["a"], *some["b"])
    found.ended(some["a"], 1.0)
    without = found._nbytes
    found.ended(some["b"], 1.0)
    assert found._nbytes - without > 1000 * 3 * 100
