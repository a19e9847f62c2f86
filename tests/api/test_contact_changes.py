"""An agent who edits a lead's e-mail or phone does not receive other customers' messages."""

from uuid import uuid4

import pytest

from tests.client import Api


@pytest.mark.parametrize("field", ["email", "phone"])
def test_inbound_ignores_what_an_agent_wrote(api: Api, field: str) -> None:
    agent, key = api.new_user(), api.new_key()
    own = api.new_conversation(agent)
    contact = f"{uuid4().hex}@example.com" if field == "email" else uuid4().hex
    agent.patch(f"/leads/{own['lead']['id']}", {field: contact})
    received = key.inbound("Where is my order?", lead={"name": "Victim", field: contact})
    assert received["leadId"] != own["lead"]["id"]
    agent.get(f"/conversations/{received['conversationId']}", expect=404)


def test_inbound_believes_what_an_admin_wrote(api: Api) -> None:
    agent, key = api.new_user(), api.new_key()
    own = api.new_conversation(agent)
    contact = f"{uuid4().hex}@example.com"
    agent.patch(f"/leads/{own['lead']['id']}", {"email": contact})
    api.patch(f"/leads/{own['lead']['id']}", {"email": contact})
    received = key.inbound("Where is my order?", lead={"name": "Ana", "email": contact})
    assert received["leadId"] == own["lead"]["id"]
