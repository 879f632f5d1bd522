"""Events that have names. Clients of server-sent events tell them apart by the `event` field, readers of lines by the
`type` that each of them holds, too."""

from api_server.render.frame import SSE, Framing


def event_open(name: str, framing: Framing) -> bytes:
    """What stands before the event's JSON."""
    return b"event: %b\n" % name.encode() + framing.before if framing == SSE else framing.before
