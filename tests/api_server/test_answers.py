import pytest

from api_server.answers import Answers, SendWait
from api_server.routes import API, HEALTH, PAGES
from api_server.tallies import Tallies


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/livez", "/livez"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/org/name", "/v1/models/{id:path}"),
        ("/v1/requests/cmpl-1/cancel", "/v1/requests/{id}/cancel"),
        ("/v1/requests/a/b/cancel", "other"),
        ("/v1/models/{id:path}", "/v1/models/{id:path}"),
        ("/docs/x.js", "/docs/{file}"),
        ("/LIVEZ", "other"),
        ("", "other"),
        ("/v1/requests/a\n/cancel", "/v1/requests/{id}/cancel"),
    ],
)
def test_a_path_counts_for_its_route(path: str, template: str) -> None:
    answers = Answers(Tallies(), [endpoint.path for endpoint in HEALTH + API + PAGES])
    answers.count(path, 200)
    answers.count(path, 404)
    assert answers.tallies.requests[template] == {200: 1, 404: 1}
    others = [found for route, found in answers.tallies.requests.items() if route != template]
    assert others
    assert all(found == {200: 0} for found in others)


def test_tallies_are_added_up_but_for_what_runs() -> None:
    one, two = Tallies(streams=3), Tallies(streams=4, client_disconnects=1, coalesced_tokens=2)
    one.answered("/a", 200)
    two.answered("/a", 200)
    two.answered("/a", 500)
    two.answered("/b", 200)
    two.stalled(0.3)
    two.late(9.0)
    one.add(two)
    one.add(two)
    assert one.streams == 3
    assert one.counters == (2, 4, 0, 0)
    assert one.requests == {"/a": {200: 3, 500: 2}, "/b": {200: 2}}
    assert [(sum(seen.counts), seen.sum) for seen in one.histograms] == [(2, 0.6), (2, 18.0)]
    assert one.loop_lags.counts[-1] == 2
    assert two.requests == {"/a": {200: 1, 500: 1}, "/b": {200: 1}}


def test_a_wait_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 5.0
    monkeypatch.setattr("api_server.answers.time.monotonic", lambda: now_s)
    wait = SendWait(Tallies())
    wait.end()
    wait.begin()
    now_s = 7.0
    wait.end()
    wait.end()
    assert (sum(wait._tallies.send_stalls.counts), wait._tallies.send_stalls.sum) == (1, 2.0)
