"""The OpenAPI 3.1 document, made from the routes that serve."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from handlers.idempotency import HEADER as IDEMPOTENCY_KEY
from handlers.idempotency import REPLAYED
from handlers.kinds import Kind
from handlers.media_type import JSON
from handlers.paths import PARAMETERS
from handlers.principal import SESSION_COOKIE
from handlers.problem import MEDIA_TYPE, ProblemDocument
from handlers.query import NoParameters
from handlers.rate_limits import LEFT, POLICY
from handlers.request_id import HEADER as REQUEST_ID
from handlers.route import Route
from handlers.version import VERSION

_REF = "#/components/schemas/{name}"
_ABOUT = (
    "The streaming backend for multi-agent chat. Bodies are JSON in UTF-8, times RFC 3339 in UTC; fields and parameters"
    " that are not named here are refused. Every error is an RFC 9457 document of one shape."
)
_PROBLEM_EXAMPLE = {
    "type": "/problems/invalid",
    "title": "Invalid request",
    "status": 422,
    "detail": "/content: is required",
    "instance": "/api/conversations/0197e3a5-0000-7000-8000-000000000000/messages",
    "request_id": "0197e3a5-1111-7000-8000-000000000000",
    "errors": [{"pointer": "/content", "detail": "is required"}],
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document for `routes`."""
    types = [kind for route in routes for kind in _types(route)] + [ProblemDocument]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    # In the order in which they were asked for; types that cannot be hashed are among them.
    of_type = dict(zip(map(id, types), schemas, strict=True))
    components["ProblemDocument"]["examples"] = [_PROBLEM_EXAMPLE]
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, of_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Swarm",
            "version": VERSION,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": components,
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "responses": {"Problem": _problem("Any other error.")},
            "securitySchemes": _SECURITY,
        },
    }


_SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (`swarm_key_…`), the bootstrap key, or a JSON Web Token.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION_COOKIE,
        "description": "A browser's session, from `POST /api/session`. Writes must come from a page of this origin.",
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "A ticket, from `POST /api/tickets`: for streams alone.",
    },
}

_PARAMETERS = {
    "IdempotencyKey": {
        "name": IDEMPOTENCY_KEY,
        "in": "header",
        "description": "Makes the write safe to repeat: for 24 hours the same key gets the same answer.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    "RequestId": {
        "name": REQUEST_ID,
        "in": "header",
        "description": "Taken over as the request's id when it is 1 to 128 visible ASCII characters.",
        "schema": {"type": "string"},
    },
}
_HEADERS = {
    "RequestId": {
        "description": "The id under which the request is found in the server's log.",
        "required": True,
        "schema": {"type": "string"},
    },
    "RateLimitPolicy": {
        "description": "What a principal may send, where that is limited: `q` requests in `w` seconds"
        " (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string", "examples": ['"default";q=600;w=60']},
    },
    "RateLimit": {
        "description": "What is left of it: `r` requests; `t` seconds until it is more.",
        "schema": {"type": "string", "examples": ['"default";r=599;t=30']},
    },
}
_RATE = {POLICY: {"$ref": "#/components/headers/RateLimitPolicy"}, LEFT: {"$ref": "#/components/headers/RateLimit"}}


def _types(route: Route) -> Iterable[Any]:
    events = (data for data, _ in route.events.values())
    for kind in (route.body, route.response, *route.also.values(), *route.members.values(), *events):
        if isinstance(kind, tuple):
            yield from kind
        elif kind is not None:
            yield kind


def _schema(kind: Any, of_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    if isinstance(kind, tuple):
        return {"anyOf": [of_type[id(one)] for one in kind]}
    return of_type[id(kind)]


def _operation(route: Route, of_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [*_path_parameters(route), *_query_parameters(route), *_header_parameters(route)],
        "responses": _responses(route, of_type),
    }
    if route.needs != "public":
        # Names of scopes are told for every kind of scheme since OpenAPI 3.1.
        scopes = [] if route.needs == "anyone" else [route.needs]
        schemes = ["bearer", "session", *(["ticket"] if route.takes_ticket else [])]
        operation["security"] = [{scheme: scopes} for scheme in schemes]
    if route.description:
        operation["description"] = route.description
    if route.events:
        # OpenAPI 3.1 has no words for what is in a stream.
        operation["x-events"] = [
            {"event": name, "data": _schema(data, of_type), "description": meaning}
            for name, (data, meaning) in route.events.items()
        ]
    if route.body is not None:
        content: dict[str, Any] = {JSON: {"schema": _schema(route.body, of_type)}}
        if route.example is not None:
            content[JSON]["example"] = route.example
        for media_type in route.streamed:
            content[media_type] = {"schema": {"type": "string", "description": "One JSON object a line."}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _path_parameters(route: Route) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": PARAMETERS[name].schema}


def _query_parameters(route: Route) -> Iterable[dict[str, Any]]:
    if route.query is NoParameters:
        return
    (_,), components = msgspec.json.schema_components([route.query], ref_template=_REF)
    schema = components[route.query.__name__]
    required = set(schema["required"])
    for name, kind in schema["properties"].items():
        # Not giving a parameter is how to say null in a query.
        members = [member for member in kind.get("anyOf", [kind]) if member != {"type": "null"}]
        described = members[0] if len(members) == 1 else {"anyOf": members}
        if kind.get("default") is not None:
            described = {**described, "default": kind["default"]}
        parameter = {"name": name, "in": "query", "required": name in required}
        if "description" in described:
            parameter["description"] = described["description"]
            described = {key: value for key, value in described.items() if key != "description"}
        yield {**parameter, "schema": described}


def _header_parameters(route: Route) -> Iterable[dict[str, Any]]:
    for name, meaning in route.request_headers.items():
        yield {"name": name, "in": "header", "description": meaning, "schema": {"type": "string"}}
    if route.writes and route.keyed:
        yield {"$ref": "#/components/parameters/IdempotencyKey"}
    yield {"$ref": "#/components/parameters/RequestId"}


def _responses(route: Route, of_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, kind in ({route.status: route.response} | dict(route.also)).items():
        headers: dict[str, Any] = {
            name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in route.headers.items()
        }
        if route.writes and route.keyed:
            headers[REPLAYED] = {
                "description": "`true` when an earlier request with the same key got this answer.",
                "schema": {"type": "string", "const": "true"},
            }
        if route.counted:
            headers.update(_RATE)
        answer: dict[str, Any] = {
            "description": HTTPStatus(status).phrase,
            "headers": {**headers, REQUEST_ID: {"$ref": "#/components/headers/RequestId"}},
        }
        if kind is not None:
            answer["content"] = {route.media_type: {"schema": _schema(kind, of_type)}}
        elif status == 200:
            answer["content"] = {route.media_type: {"schema": {"type": "string"}}}
            if route.sample:
                answer["content"][route.media_type]["example"] = route.sample
        responses[str(status)] = answer
    by_status: dict[int, list[Kind]] = {}
    for problem in route.all_problems:
        by_status.setdefault(problem.status, []).append(problem)
    for status, kinds in by_status.items():
        if str(status) not in responses:
            meanings = " ".join(f"`{kind.type}`: {kind.meaning}" for kind in kinds)
            members = None if status not in route.members else _schema(route.members[status], of_type)
            responses[str(status)] = _problem(meanings, members, retry_after=status in {429, 503})
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    return responses


def _problem(description: str, members: dict[str, Any] | None = None, *, retry_after: bool = False) -> dict[str, Any]:
    headers: dict[str, Any] = {REQUEST_ID: {"$ref": "#/components/headers/RequestId"}}
    if retry_after:
        headers["Retry-After"] = {"description": "In seconds.", "schema": {"type": "integer"}}
    schema: dict[str, Any] = {"$ref": _REF.format(name="ProblemDocument")}
    if members is not None:
        schema = {"allOf": [schema, members]}
    return {
        "description": description,
        "headers": headers,
        "content": {MEDIA_TYPE: {"schema": schema}},
    }
