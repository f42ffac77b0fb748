"""An agent: who it is and what it can do. It speaks in messages of role `agent`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Line = Annotated[str, Meta(min_length=1, max_length=200)]
Lines = Annotated[list[Line], Meta(max_length=100)]
# A prompt goes to a model with every answer; this is more than any model reads gladly.
Prompt = Annotated[str, Meta(max_length=64 * 1024)]


class AgentProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of an agent but its id."""

    name: Line
    role: Annotated[str, Meta(min_length=1, max_length=64)]
    description: Annotated[str, Meta(max_length=2_000)] = ""
    model: Annotated[Line | None, Meta(description="null: the default model.")] = None
    system_prompt: Prompt = ""
    capabilities: Lines = []
    specialties: Lines = []
    icon: Annotated[str, Meta(max_length=32, description="An emoji.")] = ""
    tools: Annotated[Lines, Meta(description="The names of the tools that it may call.")] = []


class Agent(Struct, frozen=True, kw_only=True):
    """An agent of a tenant."""

    id: str
    name: str
    role: str
    description: str
    model: str | None
    system_prompt: str
    capabilities: list[str]
    specialties: list[str]
    icon: str
    tools: list[str]

    @classmethod
    def of(cls, agent_id: str, profile: AgentProfile) -> Agent:
        return cls(
            id=agent_id,
            name=profile.name,
            role=profile.role,
            description=profile.description,
            model=profile.model,
            system_prompt=profile.system_prompt,
            capabilities=profile.capabilities,
            specialties=profile.specialties,
            icon=profile.icon,
            tools=profile.tools,
        )
