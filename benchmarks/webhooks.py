"""Webhooks: what they add to a message, and how fast deliveries go out.

    python benchmarks/webhooks.py [--messages 4000] [--rounds 3]

16 connections post messages to 1,000 conversations, in rounds, each round in three ways:

- without any webhook;
- with 3 webhooks that want everything and are paused: each message is written down for them, in
  its transaction and after it, in the window that is measured, but nothing goes out;
- with 3 enabled webhooks: the window ends when the last of the deliveries, three a message, has
  been taken by the receiver.

What is counted is the CPU of the server process and of Postgres, by message, against that of the
first way in the same round, of which the median is shown. The receiver is a process of its own and
is not counted. Nothing is analysed: that would fall into some later window. Target: paused
webhooks, which is what a sender pays, cost at most 1.35 times as much as none.

Then a backlog, of one webhook and of three, goes out at once to the same receiver: at least 500
deliveries a second.
"""

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import asyncpg
from measure import BenchServer, cpu_of
from send import make_conversations, through_the_server

WEBHOOKS = 3
RECEIVER = """
import asyncio

ANSWER = b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok"


class Receiver(asyncio.Protocol):
    received = 0

    def connection_made(self, transport):
        self.transport = transport
        self.data = b""

    def data_received(self, data):
        self.data += data
        while (end := self.data.find(b"\\r\\n\\r\\n")) >= 0:
            at = self.data.lower().index(b"content-length:") + 15
            size = int(self.data[at : self.data.index(b"\\r", at)])
            if len(self.data) < end + 4 + size:
                return
            self.data = self.data[end + 4 + size :]
            Receiver.received += 1
            self.transport.write(ANSWER)


class Counter(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"%d" % Receiver.received)
        transport.close()


async def main():
    loop = asyncio.get_running_loop()
    for kind in (Receiver, Counter):
        server = await loop.create_server(kind, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
"""


class Receiver:
    """A process that says 200 to everything and counts."""

    def __init__(self, port: int, counter_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/hook"
        self._counter_port = counter_port

    async def count(self) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._counter_port)
        text = await reader.read()
        writer.close()
        return int(text)

    async def wait_for(self, count: int) -> None:
        while await self.count() < count:  # noqa: ASYNC110  # it counts in another process
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def running_receiver() -> Iterator[Receiver]:
    process = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Receiver(int(process.stdout.readline()), int(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait()


class Bench:
    def __init__(self, server: BenchServer, receiver: Receiver, messages: int) -> None:
        self.server = server
        self.receiver = receiver
        self.messages = messages
        self.token = server.admin_token()
        self.ids: list[UUID] = asyncio.run(make_conversations(server.dsn()))
        self.webhooks: list[str] = []

    def call(self, method: str, path: str, body: Any = None) -> Any:
        return self.server.call(method, path, body, self.token)

    def make_webhooks(self, *, enabled: bool, count: int = WEBHOOKS) -> None:
        for _ in range(count):
            webhook = self.call("POST", "/webhooks", {"url": self.receiver.url})
            self.webhooks.append(webhook["id"])
        self.enable(enabled=enabled)

    def enable(self, *, enabled: bool) -> None:
        for webhook_id in self.webhooks:
            self.call("PATCH", f"/webhooks/{webhook_id}", {"enabled": enabled})

    def delete_webhooks(self) -> None:
        """With what the server would prune later, in the window of somebody else."""
        while self.webhooks:
            self.call("DELETE", f"/webhooks/{self.webhooks.pop()}")
        asyncio.run(self._truncate())

    async def _truncate(self) -> None:
        connection = await asyncpg.connect(self.server.dsn())
        await connection.execute("truncate webhook_deliveries, webhook_bodies")
        await connection.close()

    async def send(self) -> None:
        await through_the_server(self.server, self.token, self.ids, self.messages)

    async def until_written_down(self) -> None:
        connection = await asyncpg.connect(self.server.dsn())
        filled = "select exists (select from webhook_outbox)"
        while await connection.fetchval(filled):  # noqa: ASYNC110  # another process empties it
            await asyncio.sleep(0.05)
        await connection.close()

    def without(self) -> float:
        with cpu_of(self.server, self.messages, "no webhook") as cpu:
            asyncio.run(self.send())
        return cpu["total"]

    def paused(self) -> float:
        self.make_webhooks(enabled=False)
        with cpu_of(self.server, self.messages, f"{WEBHOOKS} webhooks, held back") as cpu:
            asyncio.run(self.send())
            asyncio.run(self.until_written_down())
        self.delete_webhooks()
        return cpu["total"]

    def delivered(self) -> float:
        self.make_webhooks(enabled=True)
        expected = asyncio.run(self.receiver.count()) + WEBHOOKS * self.messages
        with cpu_of(self.server, self.messages, f"{WEBHOOKS} webhooks, delivered") as cpu:
            asyncio.run(self.send())
            asyncio.run(self.receiver.wait_for(expected))
        self.delete_webhooks()
        return cpu["total"]

    def backlog(self, webhooks: int) -> float:
        """Deliveries a second."""
        self.make_webhooks(enabled=False, count=webhooks)
        asyncio.run(self.send())
        asyncio.run(self.until_written_down())
        deliveries = webhooks * self.messages
        expected = asyncio.run(self.receiver.count()) + deliveries
        label = f"a backlog of {webhooks} webhooks, by delivery"
        with cpu_of(self.server, deliveries, label) as cpu:
            self.enable(enabled=True)
            asyncio.run(self.receiver.wait_for(expected))
        self.delete_webhooks()
        return cpu["rate"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    settings = {
        "MESSAGING_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8",
        "MESSAGING_ANALYSIS__ENABLED": "false",
    }
    with BenchServer(**settings) as server, running_receiver() as receiver:
        bench = Bench(server, receiver, options.messages)
        asyncio.run(bench.send())
        ways = {"without": bench.without, "paused": bench.paused, "delivered": bench.delivered}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                cpu[name].append(way())
                time.sleep(1)
        for name, target in (("paused", " (target 1.35)"), ("delivered", "")):
            pairs = zip(cpu[name], cpu["without"], strict=True)
            ratio = statistics.median(cost / base for cost, base in pairs)
            print(f"{name} against without: {ratio:.2f}{target}")
        rates = [bench.backlog(webhooks) for webhooks in (1, WEBHOOKS)]
        print(f"deliveries: {min(rates):.0f}/s (target 500)")


if __name__ == "__main__":
    main()
