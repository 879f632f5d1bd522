"""Health, version and metrics. All of it is answered from what this process knows: the engine is never asked, except by
`?deep=1`."""

from starlette.requests import Request
from starlette.responses import Response

from api_server.frontend import Frontend, frontend
from api_server.respond import JsonResponse
from api_server.version import own_version
from protocol.messages import PROTOCOL_VERSION

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
    """The engine's own text, as last pushed, and what every frontend sees of the engine. Nothing is computed here."""
    engine = frontend(request).engine
    own = (
        "# HELP tokenwire_engine_up Whether the engine core is connected, loaded and fresh.\n"
        "# TYPE tokenwire_engine_up gauge\n"
        f"tokenwire_engine_up {int(engine.ready)}\n"
        "# HELP tokenwire_engine_epoch Counts the lives of the engine core.\n"
        "# TYPE tokenwire_engine_epoch gauge\n"
        f"tokenwire_engine_epoch {engine.epoch}\n"
        "# HELP tokenwire_heartbeat_age_seconds Since anything came from the engine core.\n"
        "# TYPE tokenwire_heartbeat_age_seconds gauge\n"
        f"tokenwire_heartbeat_age_seconds {engine.heartbeat_age_s:.3f}\n"
    )
    return Response(engine.metrics_text + own.encode(), media_type="text/plain; version=0.0.4; charset=utf-8")


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
