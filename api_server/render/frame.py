"""What goes around a chunk's JSON on the wire, and around its choices."""

from typing import Final, NamedTuple

import msgspec

from api_server.job import Job
from api_server.schema.responses import FinishName, Usage
from api_server.text import Piece
from protocol.messages import FinishReason

to_json: Final = msgspec.json.Encoder().encode


class Framing(NamedTuple):
    """Bytes before and after each chunk, and the bytes that say that there are no more."""

    before: bytes
    after: bytes
    done: bytes


SSE: Final = Framing(b"data: ", b"\n\n", b"data: [DONE]\n\n")
NDJSON: Final = Framing(b"", b"\n", b"")

FINISH_NAMES: Final[dict[FinishReason, FinishName]] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
FINISH_JSON: Final = {reason: to_json(name) for reason, name in FINISH_NAMES.items()}


def finish_name(piece: Piece) -> FinishName:
    """Of a sequence that has ended. Raises ValueError for any other: none is left out, or made to look complete."""
    if piece.finish is None:
        raise ValueError(f"sequence {piece.index} has not ended")
    return FINISH_NAMES[piece.finish]


class ChunkTemplate:
    """The part that all chunks of a stream share. It is encoded once; a chunk is bytes put between bytes."""

    __slots__ = ("_close", "_done", "_usage_close", "open", "plain_close")

    def __init__(self, job: Job, kind: str, framing: Framing) -> None:
        shared = {
            "id": job.submission.rid,
            "object": kind,
            "created": job.created,
            "model": job.model,
            "system_fingerprint": job.fingerprint,
        }
        self._close: Final = b"}" + framing.after
        self._done: Final = framing.done
        self._usage_close: Final = b',"usage":null' + self._close if job.include_usage else self._close
        self.open: Final = framing.before + to_json(shared)[:-1] + b',"choices":['
        self.plain_close: Final = b"]" + self._usage_close

    def close(self, usage: Usage | None, extra: bytes = b"") -> bytes:
        """Ends a chunk; `usage` is there with continuous_usage_stats, `extra` are members of the chunk object."""
        if usage is None:
            return b"]" + extra + self._usage_close
        return b"]" + extra + b',"usage":' + to_json(usage) + self._close

    def tail(self, usage: Usage | None) -> bytes:
        """The end of the stream, with the usage chunk if it was asked for."""
        if usage is None:
            return self._done
        return self.open + self.close(usage) + self._done
