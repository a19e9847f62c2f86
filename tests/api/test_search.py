"""Search: any part of a lead's name, e-mail or phone; words and their beginnings in messages."""

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import asyncpg
import pytest

from tests.client import Api

LEADS = {
    "ana": {"name": "Ana María Ñúñez-O'Brien", "email": "Ana.Maria+shop@Example.co.uk"},
    "zoe": {"name": "ZOË 50% _off_ \\back\\", "phone": "+34 (600) 12-34-56"},
    "ali": {"name": "علي 小林 😀", "email": "ali@example.org"},
    "odd": {"name": '"quoted" & (odd) | !not :* <->', "phone": "555"},
    "ist": {"name": "İstanbul ΟΔΥΣΣΕΥΣ"},
}
MESSAGES = {
    "ana": "¿Cómo puedo devolver la cámara? El pedido 9876543 llegó roto.",
    "zoe": "Where's my re-fund?! It's been 3 weeks... e-mail me at zoe@home.invalid",
    "ali": "Straße naïve coöperate 小林さん",
    "odd": "100% of 'nothing' \\ and \"everything\" PED-4711 factura/recibo,vale.gracias"
    " <li.wei@ping.invalid> <https://shop.test/order/8822>",
    "ist": "İyi günler ΣΑΣ",
}


@pytest.fixture(scope="module")
def agent(api: Api, key: Api) -> Iterator[Api]:
    """An agent with the conversations above; a lead's name in the table is their key."""
    with api.new_user() as user:
        for name, lead in LEADS.items():
            result = key.inbound(MESSAGES[name], lead={**lead, "externalId": uuid4().hex})
            path = f"/conversations/{result['conversationId']}"
            api.patch(f"/leads/{result['leadId']}", {"attributes": {"key": name}})
            api.post(f"{path}/assign", {"agentId": user.user["id"]})
        yield user


def found(user: Api, search: str, **filters: str) -> str:
    """The keys of the conversations that are found, in order."""
    items = user.get("/conversations", search=search, **filters)["items"]
    return " ".join(sorted(item["lead"]["attributes"]["key"] for item in items))


def found_leads(user: Api, search: str) -> str:
    items = user.get("/leads", search=search)["items"]
    return " ".join(sorted(item["attributes"]["key"] for item in items))


@pytest.mark.parametrize(
    ("search", "keys"),
    [
        ("María", "ana"),
        ("MARÍA", "ana"),
        ("aría ñúñ", "ana"),
        ("ñúñez-o'b", "ana"),
        ("O'Brien", "ana"),
        ("maria+shop@", "ana"),
        ("EXAMPLE.CO.UK", "ana"),
        ("ana.maria+shop@example.co.uk", "ana"),
        ("@example", "ali ana"),
        ("ñú", "ana"),
        ("zoë", "zoe"),
        ("50%", "zoe"),
        ("0% _", "zoe"),
        ("_off_", "zoe"),
        ("\\back\\", "zoe"),
        ("+34 (600)", "zoe"),
        ("34600123456", "zoe"),
        ("600123", "zoe"),
        ("12-34", "zoe"),
        ("علي", "ali"),
        ("小林", "ali"),
        ("😀", "ali"),
        ('"quoted"', "odd"),
        ("& (odd) | !not", "odd"),
        (":* <->", "odd"),
        ("55", "odd"),
        ("İSTANBUL", "ist"),
        ("istanbul", "ist"),
        ("ΟΔΥΣΣΕΥΣ", "ist"),
        ("  maría  ", "ana"),
        ("%%%", ""),
        ("___", ""),
        ("nobody", ""),
    ],
)
def test_any_part_of_a_lead(agent: Api, search: str, keys: str) -> None:
    assert found_leads(agent, search) == keys
    assert found(agent, search) == keys


@pytest.mark.parametrize(
    ("search", "keys"),
    [
        ("devolver", "ana"),
        ("DEVOLVER", "ana"),
        ("devol", "ana"),
        ("evolver", ""),  # not where a word begins
        ("Cómo", "ana"),
        ("CÓMO", "ana"),
        ("cámara", "ana"),
        ("cám", "ana"),
        ("9876543", "ana"),
        ("98765", "ana"),
        ("roto pedido", "ana"),
        ("pedido refund", ""),  # of two conversations
        ("weeks", "zoe"),
        ("re-fund", "zoe"),
        ("where's", "zoe"),
        ("it's been", "zoe"),
        ("e-mail", "zoe"),
        ("zoe@home.invalid", "zoe"),
        ("straße", "ali"),
        ("naïve coöp", "ali"),
        ("小林さん", "ali"),
        ("'nothing'", "odd"),
        ('"everything"', "odd"),
        ("100% nothing", "odd"),
        ("nothing\\", "odd"),
        ("günler", "ist"),
        ("ΣΑΣ", "ist"),
    ],
)
def test_words_of_messages(agent: Api, search: str, keys: str) -> None:
    assert found(agent, search) == keys


@pytest.mark.parametrize(
    ("search", "keys"),
    [
        ("4711", "odd"),
        ("recibo", "odd"),
        ("gracias", "odd"),
        ("zoe@home", "zoe"),
        ("wei", "odd"),
        ("li.wei@ping.invalid", "odd"),
        ("<li.wei@ping.invalid>", "odd"),
        ("8822", "odd"),
    ],
)
def test_words_joined_by_punctuation(agent: Api, search: str, keys: str) -> None:
    assert found(agent, search) == keys


@pytest.mark.parametrize(
    "search",
    ["'", "''", '"', "\\", "\\'", "%", "_", "!", "&", "|", "(", ")", ":*", "a:*", "!!!", "()",
     "<->",
     "a & b", "a | b", "!a", "a <-> b", "'a' & 'b'", "\\\\", "x\\", "$1", "{0}", "--", ";",
     "😀😀😀",
     "\t\n", "   ", "\u200b", "\u202e", "a\u0301", "'" * 200, "\\" * 200, "x" * 200, "😀" * 200,
     "a " * 100, "- - -", "NULL", "'; drop table users; --"],
)  # fmt: skip
def test_no_search_is_an_error(agent: Api, search: str) -> None:
    for path in ("/conversations", "/leads"):
        agent.get(path, expect=200, search=search)


@pytest.mark.parametrize("search", ["   ", "\t", "\u00a0"])
def test_only_space_finds_nothing_in_particular(agent: Api, search: str) -> None:
    """Neither an error nor a filter that hides everything."""
    everything = " ".join(sorted(LEADS))
    assert found(agent, search) == found_leads(agent, search) == everything


def test_private_notes_are_found_too(api: Api, agent: Api) -> None:
    item = agent.get("/conversations", search="devolver")["items"][0]
    agent.send(item["id"], "Kundennummer xyzzy", private=True)
    assert found(agent, "xyzzy") == "ana"


def test_search_with_filters(api: Api, agent: Api) -> None:
    item = agent.get("/conversations", search="devolver")["items"][0]
    api.patch(f"/conversations/{item['id']}", {"status": "RESOLVED", "tags": ["returns"]})
    assert found(agent, "devolver", status="RESOLVED") == "ana"
    assert found(agent, "devolver", status="OPEN") == ""
    assert found(agent, "María", tag="returns") == "ana"
    assert found(agent, "María", tag="return") == ""
    assert found(agent, "weeks", tag="returns") == ""
    assert found(agent, "María", tag="returns", unreplied="true") == ""


def test_a_changed_lead_is_found_by_its_new_name(api: Api, agent: Api) -> None:
    item = agent.get("/conversations", search="quoted")["items"][0]
    api.patch(f"/leads/{item['lead']['id']}", {"name": "Renamed"})
    assert found(agent, "renam") == "odd"
    assert found(agent, "quoted") == ""


def test_other_peoples_leads_do_not_crowd_out_ones_own(api: Api, api_dsn: str) -> None:
    async def many() -> None:
        connection = await asyncpg.connect(api_dsn)
        await connection.execute(
            "insert into leads (name) select 'Crowdname ' || g from generate_series(1, 1100) g"
        )
        await connection.close()

    own_agent = api.new_user()
    own = api.new_conversation(own_agent, name="Crowdname mine")
    asyncio.run(many())
    found = own_agent.get("/conversations", search="crowdname")["items"]
    assert [conversation["id"] for conversation in found] == [own["id"]]
