"""Health, version and metrics. All of it is answered from what this process knows: the engine is never asked, except by
`?deep=1`."""

from starlette.requests import Request
from starlette.responses import Response

from api_server.exposition import CONTENT_TYPE
from api_server.frontend import Frontend, frontend
from api_server.respond import JsonResponse
from api_server.schema.health import Alive, EngineHealth, Health, Versions
from protocol.messages import PROTOCOL_VERSION
from protocol.version import own_version

_OK = 200
_UNAVAILABLE = 503


async def livez(request: Request) -> Response:
    """This process's loop turns. A restart of it would not mend an engine, so the engine does not matter here."""
    return JsonResponse(Alive())


async def readyz(request: Request) -> Response:
    """200 if a request sent now would be generated. It is answered from what this process knows; `?deep=1` generates
    one token through the real queue."""
    front = frontend(request)
    status = _status(front)
    deep = request.query_params.get("deep", "0") not in ("", "0")
    if status == "ok" and deep and (failure := await front.canary.failure()):
        status = f"deep check failed: {failure}"
    return JsonResponse(_health(front, status), _OK if status == "ok" else _UNAVAILABLE)


async def startupz(request: Request) -> Response:
    """200 from when the model was loaded for the first time."""
    front = frontend(request)
    loaded = front.engine.card is not None
    return JsonResponse(_health(front, "ok" if loaded else "loading"), _OK if loaded else _UNAVAILABLE)


async def version(request: Request) -> Response:
    """Which version this is."""
    return JsonResponse(Versions(own_version(), PROTOCOL_VERSION))


async def metrics(request: Request) -> Response:
    """Metrics of the engine and of this server, as Prometheus text."""
    return Response(frontend(request).metrics.text(), media_type=CONTENT_TYPE)


def _status(front: Frontend) -> str:
    if front.draining:
        return "draining"
    if front.engine.ready:
        return "ok"
    return "loading" if front.engine.card is None else "engine " + front.engine.state


def _health(front: Frontend, status: str) -> Health:
    engine = front.engine
    return Health(
        status,
        EngineHealth(
            engine.state,
            engine.epoch,
            round(engine.heartbeat_age_s, 3),
            round(engine.last_step_age_s, 3),
            engine.load.running,
            engine.load.waiting,
        ),
        front.draining,
    )
