"""Health, version and metrics. All of it is answered from what this process knows: the engine is never asked, except by
`?deep=1`."""

from starlette.requests import Request
from starlette.responses import Response

from api_server.frontend import Frontend, frontend
from api_server.metrics import CONTENT_TYPE
from api_server.respond import JsonResponse
from protocol.messages import PROTOCOL_VERSION
from protocol.version import own_version

_OK = 200
_UNAVAILABLE = 503


async def livez(request: Request) -> Response:
    """This process's loop turns. A restart of it would not mend an engine, so the engine does not matter here."""
    return JsonResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """200 if a request sent now would be generated."""
    front = frontend(request)
    status = _status(front)
    deep = request.query_params.get("deep", "0") not in ("", "0")
    if status == "ok" and deep and (failure := await front.canary.failure()):
        status = f"deep check failed: {failure}"
    return JsonResponse(_health(front, status), _OK if status == "ok" else _UNAVAILABLE)


async def startupz(request: Request) -> Response:
    """200 from when the model is loaded for the first time."""
    front = frontend(request)
    loaded = front.engine.card is not None
    return JsonResponse(_health(front, "ok" if loaded else "loading"), _OK if loaded else _UNAVAILABLE)


async def version(request: Request) -> Response:
    return JsonResponse({"version": own_version(), "protocol_version": PROTOCOL_VERSION})


async def metrics(request: Request) -> Response:
    return Response(frontend(request).metrics.text(), media_type=CONTENT_TYPE)


def _status(front: Frontend) -> str:
    if front.draining:
        return "draining"
    if front.engine.ready:
        return "ok"
    return "loading" if front.engine.card is None else "engine " + front.engine.state


def _health(front: Frontend, status: str) -> dict[str, object]:
    engine = front.engine
    return {
        "status": status,
        "engine": {
            "state": engine.state,
            "epoch": engine.epoch,
            "heartbeat_age_s": round(engine.heartbeat_age_s, 3),
            "last_step_age_s": round(engine.last_step_age_s, 3),
            "running": engine.load.running,
            "waiting": engine.load.waiting,
        },
        "draining": front.draining,
    }
