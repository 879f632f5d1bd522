"""GET /v1/models and /v1/models/{id}."""

from starlette.requests import Request
from starlette.responses import Response

from api_server.errors import ApiError
from api_server.frontend import frontend
from api_server.respond import JsonResponse
from api_server.schema.responses import ModelList, ModelObject
from protocol.messages import ModelCard


async def list_models(request: Request) -> Response:
    """The model that is served."""
    return JsonResponse(ModelList([_model(await _card(request))]))


async def retrieve_model(request: Request) -> Response:
    """One model by its name."""
    card = await _card(request)
    if (wanted := request.path_params["id"]) != card.name:
        raise ApiError("model_not_found", f"The model `{wanted}` does not exist.", "model")
    return JsonResponse(_model(card))


async def _card(request: Request) -> ModelCard:
    """What is known of the model needs no engine that is up just now."""
    front = frontend(request)
    return front.engine.card or (await front.admission()).card


def _model(card: ModelCard) -> ModelObject:
    return ModelObject(card.name, card.created, card.max_model_len, card.name)
