"""The agents that every tenant has."""

import msgspec

from agents.agent import AgentProfile
from agents.shipped import SHIPPED


def test_the_shipped_agents_have_their_roles() -> None:
    assert {agent_id: agent.role for agent_id, agent in SHIPPED.items()} == {
        "bug_01": "qa",
        "coding_01": "developer",
        "general_01": "assistant",
        "product_01": "product",
    }


def test_a_shipped_agent_could_be_put_as_it_is() -> None:
    for agent_id, agent in SHIPPED.items():
        assert agent.id == agent_id
        profile = {name: value for name, value in msgspec.to_builtins(agent).items() if name != "id"}
        msgspec.convert(profile, AgentProfile)
