"""The registry of agents."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from agents.agent import Agent, AgentProfile
from handlers import requests, shapes
from handlers.kinds import NOT_FOUND, UNAVAILABLE
from handlers.resources import REGISTRY
from handlers.route import Call, Reply, Route

_ONE = "/api/agents/{agent_id}"


class _Page(Struct, frozen=True):
    items: list[Agent]
    next: str | None


async def list_agents(call: Call[requests.PageQuery, None]) -> Reply:
    items, cursor = await call.resource(REGISTRY).page(call.tenant, call.query.limit, call.query.cursor)
    return Reply(_Page(items, cursor))


async def get_agent(call: Call[Any, None]) -> Reply:
    return Reply(await call.resource(REGISTRY).get(call.tenant, call.params["agent_id"]))


async def put_agent(call: Call[Any, AgentProfile]) -> Reply:
    registry, agent_id = call.resource(REGISTRY), call.params["agent_id"]
    return Reply.of(await registry.put(call.tenant, agent_id, call.body, call.key, call.principal))


async def delete_agent(call: Call[Any, None]) -> Reply:
    registry, agent_id = call.resource(REGISTRY), call.params["agent_id"]
    return Reply.of(await registry.delete(call.tenant, agent_id, call.key, call.principal))


ROUTES = (
    Route(
        method="GET",
        path="/api/agents",
        handler=list_agents,
        summary="Agents by id",
        tag="Agents",
        query=requests.PageQuery,
        response=shapes.AgentPage,
        problems=(UNAVAILABLE,),
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=get_agent,
        summary="One agent",
        tag="Agents",
        response=Agent,
        problems=(NOT_FOUND, UNAVAILABLE),
    ),
    Route(
        method="PUT",
        path=_ONE,
        handler=put_agent,
        summary="Make an agent, or override one, shipped ones too",
        tag="Agents",
        body=AgentProfile,
        example={"name": "Writer", "role": "editor", "system_prompt": "You edit texts.", "icon": "✍️"},
        response=Agent,
        also={201: Agent},
        problems=(UNAVAILABLE,),
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=delete_agent,
        summary="Delete an agent; a shipped one is hidden",
        tag="Agents",
        status=204,
        problems=(NOT_FOUND, UNAVAILABLE),
    ),
)
