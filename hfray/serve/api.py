"""The HTTP API of one replica: OpenAI's endpoints, records, health, metrics and the page. Knows nothing of Ray."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from openai.types import Completion as TextCompletion
from openai.types import Model
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from hfray.completion import Prompt
from hfray.data.records import RecordRow
from hfray.engines.base import GenerationParams, RequestError
from hfray.errors import EngineDiedError
from hfray.serve import protocol
from hfray.serve.admission import TICKET
from hfray.serve.errors import ApiError, died, error_response
from hfray.serve.middleware import Guard
from hfray.serve.replica import Service
from hfray.serve.request import Session
from hfray.serve.sse import dump, stream_chat, stream_record, stream_text

PAGE = Path(__file__).parent / "static" / "index.html"
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
STREAM = "text/event-stream"


class ErrorDetail(BaseModel):
    """What is wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class ModelList(BaseModel):
    """The models served: one."""

    object: str = "list"
    data: list[Model]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request cannot be carried out",
        401: "No valid API key",
        403: "The server answers its own machine only",
        404: "No such model",
        413: "The request is too large",
        500: "The engine failed",
        503: "Too many requests at once; see Retry-After",
    }.items()
}


STREAMED = ERRORS | {200: {"content": {STREAM: {}}, "description": "The answer, or its parts as they come"}}


def build_api(service: Service) -> FastAPI:
    """The ASGI application around a service."""
    api = FastAPI(
        title="hfray", version=version("hfray"), docs_url=None, redoc_url=None, separate_input_output_schemas=False
    )
    api.add_middleware(Guard, service=service, settings=service.settings.serve, digests=service.digests)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(RequestValidationError, _invalid)
    _add_generation(api, service)
    _add_records(api, service)
    _add_operations(api, service)
    schema = api.openapi

    def openapi() -> dict[str, Any]:
        return _without_422(schema())

    api.openapi = openapi
    return api


def _add_generation(api: FastAPI, service: Service) -> None:
    @api.post("/v1/completions", responses=STREAMED, response_model=TextCompletion)
    async def complete(body: protocol.CompletionRequest, request: Request) -> Any:
        """Go on from a prompt, or from each of several."""

        def render() -> Sequence[Prompt]:
            return [Prompt(_text(prompt)) for prompt in body.prompts]

        session, header = await _start(service, request, body, render, len(body.prompts), "cmpl")
        if body.stream:
            return StreamingResponse(stream_text(session, header, body), media_type=STREAM)
        return _json(protocol.text_completion(header, await _completions(session), body.samples))

    @api.post("/v1/chat/completions", responses=STREAMED, response_model=ChatCompletion)
    async def chat(body: protocol.ChatRequest, request: Request) -> Any:
        """Answer a conversation, put through the model's chat template."""
        messages = [{**m, "content": _text(m["content"])} for m in (message.plain() for message in body.messages)]
        render = functools.partial(_render_chat, service, messages)
        session, header = await _start(service, request, body, render, 1, "chatcmpl")
        if body.stream:
            return StreamingResponse(stream_chat(session, header, body), media_type=STREAM)
        return _json(protocol.chat_completion(header, await _completions(session), body.samples))


def _add_records(api: FastAPI, service: Service) -> None:
    rows = RecordRow(service.settings.serve.id_column)

    @api.post("/v1/records", responses=STREAMED)
    async def answer_record(
        request: Request, record: Annotated[dict[str, Any], Body()], stream: bool = False
    ) -> dict[str, Any]:
        """The row that the batch job would write for a record, a failed one included.

        With `stream=true`, server-sent events: `{"text": ...}` as it comes, and at the end `{"row": ...}`.
        """
        try:
            row = rows.read(record)
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        session = request.scope[TICKET].hold(service.open_session())
        prompts: list[Prompt] = []

        def render() -> Sequence[Prompt]:
            prompts.append(service.worker.prompts.render(row.values))
            return prompts

        fault = None
        try:
            await session.start(render, service.settings.params, samples=[row.row_id], stream=stream)
        except RequestError as error:
            fault = str(error)

        def finished(outcome: Any) -> dict[str, Any]:
            return row.answered(prompts[0].text if prompts else None, outcome, fault)

        if stream:
            return StreamingResponse(stream_record(session, fault, finished), media_type=STREAM)
        outcomes = [None] if fault is not None else await _completions(session, checked=False)
        return Response(orjson.dumps(finished(outcomes[0])), media_type="application/json")


def _add_operations(api: FastAPI, service: Service) -> None:
    model = Model(id=service.model_name, created=int(time.time()), object="model", owned_by="hfray")
    model.prompt_columns = service.worker.prompts.variables  # what /v1/records needs; the page asks

    @api.get("/v1/models", responses={status: ERRORS[status] for status in (401, 403)}, response_model=ModelList)
    async def models() -> Any:
        """The model served."""
        return _json(ModelList.model_construct(object="list", data=[model]))

    @api.get("/v1/models/{name:path}", responses={s: ERRORS[s] for s in (401, 403, 404)}, response_model=Model)
    async def one_model(name: str) -> Any:
        """The model served, if that is its name."""
        service.check_model(name)
        return _json(model)

    @api.get("/health", responses={503: ERRORS[503]})
    async def health() -> dict[str, str]:
        """Whether this replica's engine works."""
        try:
            service.check()
        except EngineDiedError as error:
            raise ApiError(503, "the engine has died, and is being replaced") from error
        return {"status": "ok"}

    @api.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics() -> Response:
        """All replicas' metrics as Prometheus text."""
        return Response(await service.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(), headers={"Content-Security-Policy": PAGE_POLICY})


# --- a request -----------------------------------------------------------------------------------------------------


async def _start(
    service: Service,
    request: Request,
    body: protocol.GenerationRequest,
    render: Callable[[], Sequence[Prompt]],
    num_prompts: int,
    prefix: str,
) -> tuple[Session, protocol.Header]:
    """Send a request's prompts to the engine; a stream's first piece is there on return. Raises ApiError."""
    service.check_model(body.model)
    ticket = request.scope[TICKET]
    ticket.widen(num_prompts * body.samples)
    session = ticket.hold(service.open_session())
    try:
        params: GenerationParams = body.params(service.settings.params)
        await session.start(render, params, samples=range(body.samples), stream=bool(body.stream))
        if body.stream:
            await session.wait_for_first()
    except ValueError as error:  # a RequestError is one, and so is a setting out of range
        raise ApiError(400, str(error)) from error
    except EngineDiedError as error:
        raise died() from error
    tokenizer = service.worker.loop.engine.tokenizer
    name = f"{prefix}-{uuid.uuid4().hex}"
    return session, protocol.Header(name, int(time.time()), service.model_name, tokenizer)


async def _completions(session: Session, checked: bool = True) -> list[Any]:
    """All completions of a request. Raises ApiError where one failed (if `checked`), or the engine died."""
    try:
        completions = await session.completions()
    except EngineDiedError as error:
        raise died() from error
    for completion in completions if checked else ():
        if completion.error is not None:
            raise ApiError(400, completion.error)
    return completions


def _render_chat(service: Service, messages: list[dict[str, str]]) -> Sequence[Prompt]:
    try:
        text = service.worker.loop.engine.tokenizer.chat(messages)
    except Exception as error:  # templates are code of the model's, and refuse what they don't know
        raise RequestError(f"the model's chat template cannot render these messages: {error}") from error
    return [Prompt(text, special_tokens_in_text=True)]


def _text(text: str) -> str:
    """Without lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


# --- answers -------------------------------------------------------------------------------------------------------


def _json(content: BaseModel) -> Response:
    return Response(dump(content), media_type="application/json")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ApiError):
        words = {404: f"there is no {request.url.path} here", 405: f"{request.method} is not for {request.url.path}"}
        headers = error.headers
        error = ApiError(error.status_code, words.get(error.status_code, str(error.detail)))
        error.headers = headers
    return error_response(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    message = f"{where}: {first['msg']}" if where else first["msg"]
    return error_response(ApiError(400, message, param=where or None, code=first["type"]))


def _without_422(schema: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's own document, less the 422 that it supposes: what cannot be used is a 400 here."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema
