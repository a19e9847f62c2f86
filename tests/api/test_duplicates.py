"""Leads that may be the same person: shown to those who may see them, merged by nobody."""

from typing import Any
from uuid import uuid4

from tests.api import shapes
from tests.api.shapes import check
from tests.client import Api


def lead_of(api: Api, agent: Api | None = None, **contact: Any) -> str:
    """A lead with a conversation, which is the agent's if there is one."""
    body: dict[str, Any] = {"lead": {"name": "Ana", **contact}}
    if agent is not None:
        body["assignedAgentId"] = agent.user["id"]
    return str(api.post("/conversations", body)["lead"]["id"])


def duplicates(api: Api, lead_id: str) -> list[str]:
    found = api.get(f"/leads/{lead_id}")
    check(found, shapes.LEAD_DETAILS)
    return [lead["id"] for lead in found["possibleDuplicates"]]


def test_by_email_without_case_and_by_phone(api: Api) -> None:
    email, phone = f"Ana-{uuid4().hex[:8]}@Example.com", f"+34 {uuid4().hex[:8]}"
    both = lead_of(api, email=email, phone=phone)
    by_email = lead_of(api, email=email.lower())
    by_phone = lead_of(api, phone=phone)
    neither = lead_of(api, email=f"x{email}")
    assert duplicates(api, both) == [by_phone, by_email]
    assert duplicates(api, by_email) == [both]
    assert duplicates(api, by_phone) == [both]
    assert duplicates(api, neither) == []
    assert duplicates(api, lead_of(api)) == []


def test_only_what_the_caller_may_see(api: Api, agent: Api, stranger: Api) -> None:
    email = f"ana-{uuid4().hex[:8]}@example.com"
    mine, other_of_mine = (lead_of(api, agent, email=email) for _ in range(2))
    foreign = lead_of(api, stranger, email=email)
    assert duplicates(agent, mine) == [other_of_mine]
    assert duplicates(api, mine) == [foreign, other_of_mine]
    agent.get(f"/leads/{foreign}", expect=404)


def test_the_newest_ten(api: Api) -> None:
    email = f"ana-{uuid4().hex[:8]}@example.com"
    made = [lead_of(api, email=email) for _ in range(12)]
    assert duplicates(api, made[0]) == made[:1:-1]
