"""The HTTP API of one replica: OpenAI's endpoints, records, health, metrics and the web page. Does not use Ray."""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, cast

import orjson
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from openai.types import Completion as TextCompletion
from openai.types import Model
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from hfray.completion import Completion, Prompt
from hfray.data.jsontypes import JsonValue
from hfray.data.records import OUTPUT_COLUMNS, RecordRow
from hfray.data.responses import ResponseColumns
from hfray.errors import EngineDiedError, RequestError
from hfray.serve import answers, protocol
from hfray.serve.admission import TICKET
from hfray.serve.errors import ApiError, ErrorBody, cut_short, on_http_error, on_invalid_request, stopping
from hfray.serve.forms import check_form
from hfray.serve.middleware import Guard
from hfray.serve.replica import Service
from hfray.serve.request import Session
from hfray.serve.sse import stream_chat, stream_record, stream_text
from hfray.serve.tokens import add_tokens

PAGE = Path(__file__).parent / "static" / "index.html"
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
STREAM = "text/event-stream"
Responses = dict[int | str, dict[str, Any]]  # FastAPI's type for the documented responses of a path


class ModelList(BaseModel):
    """The models that this server runs: exactly one."""

    object: str = "list"
    data: list[Model]


ERRORS: Responses = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request is invalid",
        401: "No valid API key",
        403: "The server answers only requests from its own machine",
        404: "The model does not exist",
        413: "The request is too large",
        500: "The engine failed",
        503: "Too many requests at once; see Retry-After",
    }.items()
}
STREAMED: Responses = ERRORS | {
    200: {"content": {STREAM: {}}, "description": "The whole answer, or a stream of its chunks"}
}


def build_api(service: Service) -> FastAPI:
    """The ASGI application around a service."""
    api = FastAPI(
        title="hfray", version=version("hfray"), docs_url=None, redoc_url=None, separate_input_output_schemas=False
    )
    api.add_middleware(Guard, service=service)
    if origins := service.settings.serve.cors_origins:
        headers = ["Authorization", "Content-Type"]
        api.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=headers)
    api.add_exception_handler(HTTPException, on_http_error)
    api.add_exception_handler(RequestValidationError, on_invalid_request)
    _add_generation(api, service)
    _add_records(api, service)
    _add_operations(api, service)
    add_tokens(api, service, ERRORS, functools.partial(_chat_text, service))
    schema = api.openapi
    api.openapi = lambda: _without_422(schema())
    return api


def _add_generation(api: FastAPI, service: Service) -> None:
    @api.post("/v1/completions", responses=STREAMED, response_model=TextCompletion)
    async def complete(body: protocol.CompletionRequest, request: Request) -> Response:
        """Complete one prompt, or several."""

        def render() -> Sequence[Prompt]:
            return [Prompt(_utf8(prompt)) for prompt in body.prompts]

        session, header = await _start(service, request, body, render, len(body.prompts), "cmpl")
        if body.stream:
            return StreamingResponse(stream_text(session, header, body), media_type=STREAM)
        return _json(answers.text_completion(header, await _completions(session), body))

    @api.post("/v1/chat/completions", responses=STREAMED, response_model=ChatCompletion)
    async def chat(body: protocol.ChatRequest, request: Request) -> Response:
        """Answer a conversation, rendered with the model's chat template."""
        render = functools.partial(_render_chat, service, [message.plain() for message in body.messages])
        session, header = await _start(service, request, body, render, 1, "chatcmpl")
        if body.stream:
            return StreamingResponse(stream_chat(session, header, body), media_type=STREAM)
        return _json(answers.chat_completion(header, await _completions(session), body))


def _add_records(api: FastAPI, service: Service) -> None:
    rows = RecordRow(service.settings.serve.id_column)
    responses = ResponseColumns.of(service.settings)

    @api.post("/v1/records", responses=STREAMED, response_model=dict[str, object])
    async def answer_record(
        request: Request, record: Annotated[dict[str, object], Body()], stream: bool = False
    ) -> Response:
        """The row that the batch job would write for a record, also if the record fails.

        With `stream=true` the answer is server-sent events: `{"text": ...}` as the text is generated, then
        `{"row": ...}`.
        """
        if protocol.nesting(record) > protocol.MAX_DEPTH:
            raise ApiError(400, f"the record is nested deeper than {protocol.MAX_DEPTH} levels")
        try:
            row = rows.read(cast("dict[str, JsonValue]", record))
            if responses is not None:
                responses.check_names(record.keys(), OUTPUT_COLUMNS)
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        session = request.scope[TICKET].hold(service.open_session())
        prompts: list[Prompt] = []

        def render() -> Sequence[Prompt]:
            prompts.append(service.worker.prompts.render(row.values))
            return prompts

        fault = None
        try:
            params = service.worker.params_of(row.values)
            await session.start(render, params, samples=[row.row_id], stream=stream)
        except RequestError as error:
            fault = str(error)

        def finished(completion: Completion | None) -> Mapping[str, object]:
            return row.answered(prompts[0].text if prompts else None, completion, fault, responses)

        if stream:
            return StreamingResponse(stream_record(session, fault, finished), media_type=STREAM)
        completion = None if fault is not None else (await _completions(session, checked=False))[0]
        return Response(orjson.dumps(finished(completion)), media_type="application/json")


def _add_operations(api: FastAPI, service: Service) -> None:
    # `prompt_columns` names the columns that /v1/records needs; the web page reads it.
    columns = service.worker.prompts.variables
    context_length = service.worker.loop.engine.context_length
    model = Model.construct(
        id=service.model_name,
        created=int(time.time()),
        object="model",
        owned_by="hfray",
        prompt_columns=columns,
        max_model_len=context_length,
    )

    @api.get("/v1/models", responses={status: ERRORS[status] for status in (401, 403)}, response_model=ModelList)
    async def models() -> Response:
        """The model that this server runs."""
        return _json(ModelList.model_construct(object="list", data=[model]))

    @api.get("/v1/models/{name:path}", responses={s: ERRORS[s] for s in (401, 403, 404)}, response_model=Model)
    async def one_model(name: str) -> Response:
        """The model of this name, if this server runs it."""
        service.check_model(name)
        return _json(model)

    @api.get("/health", responses={503: ERRORS[503]})
    async def health() -> dict[str, str]:
        """Whether this replica's engine works, and the server is not stopping."""
        if service.stopping:
            raise stopping()
        try:
            service.check()
        except EngineDiedError as error:
            raise ApiError(503, "the engine has died and is being replaced") from error
        return {"status": "ok"}

    @api.api_route("/ping", methods=["GET", "POST"], responses={503: ERRORS[503]})
    async def ping() -> dict[str, str]:
        """The same as /health, under the name that hosting platforms ask for."""
        return await health()

    @api.get("/version")
    async def running_version() -> dict[str, str]:
        """The version of hfray."""
        return {"version": version("hfray")}

    @api.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics() -> Response:
        """The metrics of all replicas as Prometheus text."""
        return Response(await service.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(), headers={"Content-Security-Policy": PAGE_POLICY})


async def _start(
    service: Service,
    request: Request,
    body: protocol.GenerationRequest,
    render: Callable[[], Sequence[Prompt]],
    num_prompts: int,
    prefix: str,
) -> tuple[Session, answers.Header]:
    """Send a request's prompts to the engine. For a stream, wait for its first piece. Raises ApiError."""
    service.check_model(body.model)
    engine = service.worker.loop.engine
    if body.wants_logprobs and not engine.top_logprobs:
        raise ApiError(
            400,
            f"{body.LIKELIEST}={body.wants_logprobs} is not supported: this server's engine reports the "
            f"log-probability of the generated token only. Use {body.LIKELIEST}=0.",
            param=body.LIKELIEST,
        )
    ticket = request.scope[TICKET]
    ticket.widen(num_prompts * body.samples)
    session = ticket.hold(service.open_session())
    try:
        params = body.params(service.settings.params, engine.context_length)
        if params.response is not None:
            await asyncio.to_thread(check_form, params.response, service.settings.backend.name)
        await session.start(render, params, samples=range(body.samples), stream=bool(body.stream))
        if body.stream:
            await session.wait_for_first()
    except ValueError as error:  # a RequestError, or a parameter out of range
        raise ApiError(400, str(error)) from error
    except EngineDiedError as error:
        raise cut_short(error) from error
    name = f"{prefix}-{uuid.uuid4().hex}"
    return session, answers.Header(name, int(time.time()), service.model_name, engine.tokenizer)


async def _completions(session: Session, checked: bool = True) -> list[Completion]:
    """All completions of a request. Raises ApiError if the engine died or, if `checked`, if a completion failed."""
    try:
        completions = await session.completions()
    except EngineDiedError as error:
        raise cut_short(error) from error
    for completion in completions if checked else ():
        if completion.error is not None:
            raise ApiError(400, completion.error)
    return completions


def _render_chat(service: Service, messages: list[dict[str, str]]) -> Sequence[Prompt]:
    return [Prompt(_chat_text(service, messages), special_tokens_in_text=True)]


def _chat_text(service: Service, messages: list[dict[str, str]]) -> str:
    """The prompt of a conversation. Raises RequestError."""
    try:
        return service.worker.loop.engine.tokenizer.chat([{**m, "content": _utf8(m["content"])} for m in messages])
    except Exception as error:  # a chat template is the model's own code and raises errors of its own
        raise RequestError(f"the model's chat template cannot render these messages: {error}") from error


def _utf8(text: str) -> str:
    """The text with lone surrogates replaced: JSON can contain them, and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _json(content: BaseModel) -> Response:
    return Response(answers.dump(content), media_type="application/json")


def _without_422(schema: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's OpenAPI document without the 422 responses: this server answers invalid requests with 400."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema
