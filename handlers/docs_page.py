"""The page at `/docs`, made from the OpenAPI document: one file, nothing loaded from elsewhere, no script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from handlers.kinds import KINDS
from handlers.query import LARGEST

_STYLE = """
:root { color-scheme: light dark; --line: #8883; --soft: #8881; --dim: #888; --accent: #3b6fe0 }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 6rem }
h1 { font-size: 2rem; margin: 0 } h2 { margin: 3rem 0 .5rem; font-size: 1.3rem }
a { color: var(--accent) } nav a { margin-right: 1rem; white-space: nowrap }
code, pre { font: .875em/1.5 ui-monospace, monospace }
pre { background: var(--soft); padding: .75rem 1rem; border-radius: .5rem; overflow-x: auto }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .5rem 0 }
summary { padding: .6rem 1rem; cursor: pointer; display: flex; gap: .75rem; flex-wrap: wrap; align-items: baseline }
summary span { color: var(--dim) } details > div { padding: 0 1rem 1rem }
.method { font-weight: 700; min-width: 4rem } .get { color: #1a7f37 } .post { color: #3b6fe0 }
.put, .patch { color: #b06c00 } .delete { color: #cf222e }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; margin: 1rem 0 }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; color: var(--dim) } :target { scroll-margin-top: 4rem; background: #ffd54a33 }
"""

STYLE_SOURCE = f"'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
"""The page's one style, as a Content-Security-Policy names it."""


def page(document: dict[str, Any]) -> bytes:
    """The page for an OpenAPI document."""
    info = document["info"]
    tags = [tag["name"] for tag in document["tags"]]
    links = "".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in [*tags, "Schemas", "Problems"])
    sections = "".join(_section(document, tag) for tag in tags)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1><p>{_text(info['description'])}"
        f' The same for machines: <a href="/openapi.json">/openapi.json</a>.</p><nav>{links}</nav>'
        f"{sections}{_schemas(document)}{_problems()}</body></html>\n"
    ).encode()


def _section(document: dict[str, Any], tag: str) -> str:
    operations = [
        _operation(document, method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if tag in operation["tags"]
    ]
    return f'<h2 id="{escape(tag)}">{escape(tag)}</h2>{"".join(operations)}'


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<p>{_text(paragraph)}</p>" for paragraph in operation.get("description", "").split("\n\n") if paragraph]
    parts.append(_table(("parameter", "in", "type", ""), [_parameter(document, p) for p in operation["parameters"]]))
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body <code>{escape(media_type)}</code>: {_type(content['schema'])}</p>")
        if "example" in content:
            example = json.dumps(content["example"], indent=2, ensure_ascii=False)
            parts.append(f"<pre>{escape(example)}</pre>")
    answers = [_answer(document, status, response) for status, response in operation["responses"].items()]
    parts.append(_table(("status", "body", ""), answers))
    headers = {
        name: _text(_resolved(document, header)["description"])
        for response in operation["responses"].values()
        for name, header in _resolved(document, response).get("headers", {}).items()
    }
    parts.append(_table(("header", ""), [(f"<code>{escape(name)}</code>", text) for name, text in headers.items()]))
    events = [
        (f"<code>{escape(event['event'])}</code>", _type(event["data"]), _text(event["description"]))
        for event in operation.get("x-events", [])
    ]
    parts.append(_table(("event", "data", ""), events))
    contents = [kind for answer in operation["responses"].values() for kind in answer.get("content", {}).values()]
    parts += [f"<pre>{escape(content['example'])}</pre>" for content in contents if "example" in content]
    return (
        f"<details><summary>"
        f'<code class="method {method}">{method.upper()}</code><code>{escape(path)}</code>'
        f"<span>{escape(operation['summary'])}</span></summary>"
        f'<div id="{escape(operation["operationId"])}">{"".join(parts)}</div></details>'
    )


def _parameter(document: dict[str, Any], parameter: dict[str, Any]) -> tuple[str, ...]:
    parameter = _resolved(document, parameter)
    name = f"<code>{escape(parameter['name'])}</code>"
    return name, parameter["in"], _type(parameter["schema"]), _text(parameter.get("description", ""))


def _answer(document: dict[str, Any], status: str, response: dict[str, Any]) -> tuple[str, ...]:
    response = _resolved(document, response)
    bodies = [
        f"<code>{escape(media_type)}</code>" if content["schema"] == {"type": "string"} else _type(content["schema"])
        for media_type, content in response.get("content", {}).items()
    ]
    return f"<code>{status}</code>", " ".join(bodies), _text(response["description"])


def _schemas(document: dict[str, Any]) -> str:
    parts = []
    for name, schema in sorted(document["components"]["schemas"].items()):
        required = schema.get("required", [])
        rows = [
            (
                f"<code>{escape(field)}</code>{'' if field in required else ' ?'}",
                _type(kind),
                _text(_description(kind)),
            )
            for field, kind in schema.get("properties", {}).items()
        ]
        parts.append(
            # A browser opens what a link leads into: the target is what is inside.
            f"<details><summary><code>{escape(name)}</code>"
            f"<span>{_text(schema.get('description', ''))}</span></summary>"
            f'<div id="schema-{escape(name)}">{_table(("field", "type", ""), rows)}</div></details>'
        )
    return f'<h2 id="Schemas">Schemas</h2>{"".join(parts)}'


def _problems() -> str:
    rows = [
        (
            f'<code id="problem-{kind.slug}">{kind.type}</code>',
            f"<code>{kind.status}</code>",
            _text(kind.meaning),
        )
        for kind in KINDS
    ]
    return f'<h2 id="Problems">Problems</h2>{_table(("type", "status", ""), rows)}'


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Cells are HTML already."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _resolved(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in value:
        return value
    found: Any = document
    for step in value["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return dict(found)


def _description(schema: dict[str, Any]) -> str:
    alternatives = schema.get("anyOf", [])
    return schema.get("description") or " ".join(filter(None, map(_description, alternatives)))


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}"><code>{name}</code></a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "allOf" in schema:
        return " with ".join(map(_type, schema["allOf"]))
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    kind = escape(schema.get("format") or schema.get("type") or "any")
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None or most is not None:
        kind += f" {'' if least is None else least}…{'' if most in {None, LARGEST} else most}"
    if isinstance(schema.get("default"), int | str) and schema["default"] != "":
        kind += f" = {escape(json.dumps(schema['default']))}"
    return kind


def _text(text: str) -> str:
    """Plain text in which `backticks` mark code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
