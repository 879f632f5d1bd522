"""Reads GET /metrics as Prometheus would, and gives it something to tell."""

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.api_server.live import BareClient, LiveServer
from tests.api_server.vocabularies import byte_level, card

LONG = card(byte_level(), name="made-up", max_model_len=32_768)
ENDLESS = 30_000  # tokens: at some milliseconds each they outlast a test
COMPLETION = b'{"prompt": [1, 2, 3], "max_tokens": %d, "ignore_eos": true, "stream": %b}'


def samples(server: LiveServer) -> list[Sample]:
    families = text_string_to_metric_families(server.get("/metrics").body.decode())
    return [sample for family in families for sample in family.samples]


def value(server: LiveServer, name: str, **labels: str) -> float:
    """Of the one series with this name and these labels; 0 for a status that no answer had yet."""
    found = [each.value for each in samples(server) if each.name == name and labels.items() <= each.labels.items()]
    assert len(found) <= 1, (name, labels)
    return found[0] if found else 0.0


def post(server: LiveServer, tokens: int, *, stream: bool = True) -> BareClient:
    """A completion whose answer has begun."""
    client = server.connect()
    body = COMPLETION % (tokens, b"true" if stream else b"false")
    client.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    if stream:
        client.until(b"\r\n\r\n")
    return client
