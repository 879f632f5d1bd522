"""POST /tokenize and /detokenize, in vLLM's shapes."""

from starlette.requests import Request
from starlette.responses import Response

from api_server.body import read_body
from api_server.encode import off_loop
from api_server.errors import ApiError
from api_server.frontend import frontend
from api_server.respond import JsonResponse
from api_server.schema.decode import decode
from api_server.schema.requests import DetokenizeRequest, TokenizeRequest
from api_server.schema.responses import Detokenized, Tokenized


async def tokenize(request: Request) -> Response:
    """Token ids of a text, or of messages as the chat route would see them."""
    body = decode(await read_body(request), TokenizeRequest)
    admission = await frontend(request).admission()
    tokens = await admission.tokenize(body)

    def told() -> Response:
        spelt = admission.spell(tokens) if body.return_token_strs else None
        return JsonResponse(Tokenized(len(tokens), admission.card.max_model_len, tokens, spelt))

    return await off_loop(len(tokens), told)


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    body = decode(await read_body(request), DetokenizeRequest)
    admission = await frontend(request).admission()
    admission.check_model(body.model)
    highest = await off_loop(len(body.tokens), lambda: max(body.tokens, default=0))
    if highest >= admission.card.vocab_size:
        message = f"token id {highest} is not below the vocabulary size {admission.card.vocab_size}"
        raise ApiError("invalid_request_error", message, "tokens")
    return JsonResponse(Detokenized(await off_loop(len(body.tokens), lambda: admission.decode(body.tokens))))
