"""A burst: 1,000 messages to one conversation cost one analysis and reach every socket in order.

    python benchmarks/burst.py [--messages 1000] [--sockets 20]

Targets: one analysis, two at most; every `message:new` once and in order at every socket.
"""

import argparse
import asyncio
import json
import time

import websockets
from measure import BenchServer, Connection

CONNECTIONS = 16
TEXT = b'{"contentText":"And another thing: the second parcel has not arrived either."}'


async def listen(url: str, token: str, conversation_id: str, messages: int) -> list[int]:
    """The numbers of the `message:new` that arrived, until the last one did."""
    seen: list[int] = []
    async with websockets.connect(url.replace("http", "ws", 1) + "/ws") as socket:
        await socket.send(json.dumps({"id": 1, "event": "auth", "data": {"token": token}}))
        await socket.send(
            json.dumps({"id": 2, "event": "conversation:join", "data": conversation_id})
        )
        async for text in socket:
            frame = json.loads(text)
            if frame.get("event") == "ping":
                await socket.send('{"event":"pong"}')
            if frame.get("event") == "message:new":
                seen.append(frame["seq"])
                if frame["seq"] == messages:
                    break
    return seen


async def post(server: BenchServer, token: str, path: str, messages: int) -> None:
    left = iter(range(messages))

    async def work() -> None:
        connection = Connection(server.port, token)
        await connection.open()
        for _ in left:
            status, answer = await connection.request("POST", path, TEXT)
            assert status == 201, answer
        connection.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


async def run(server: BenchServer, token: str, *, messages: int, sockets: int) -> None:
    conversation = server.call("POST", "/conversations", {"lead": {"name": "Ana"}}, token)
    path = f"/conversations/{conversation['id']}"
    listeners = [
        asyncio.create_task(listen(server.url, token, conversation["id"], messages))
        for _ in range(sockets)
    ]
    await asyncio.sleep(1)
    started = time.perf_counter()
    await post(server, token, f"/api/v1{path}/messages", messages)
    heard = await asyncio.gather(*listeners)
    seconds = time.perf_counter() - started
    in_order = sum(numbers == list(range(1, messages + 1)) for numbers in heard)
    print(f"{messages} messages in {seconds:.1f} s")
    print(f"{in_order} of {sockets} sockets heard each once and in order")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ai = server.call("GET", path, token=token)["ai"]
        if ai is not None and ai["analyzedThroughSeq"] == messages:
            break
        await asyncio.sleep(0.2)
    analyses = server.call("GET", f"{path}/analyses", token=token)["items"]
    print(f"analyses: {len(analyses)} (target 1, at most 2), through {analyses[0]['throughSeq']}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=1_000)
    parser.add_argument("--sockets", type=int, default=10)
    arguments = parser.parse_args()
    with BenchServer() as server:
        token = server.admin_token()
        asyncio.run(run(server, token, messages=arguments.messages, sockets=arguments.sockets))


if __name__ == "__main__":
    main()
