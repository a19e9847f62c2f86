"""Fan-out: one room, 1,000 sockets; CPU a delivery against bare transports, and latency.

    python benchmarks/fanout.py [--sockets 1000] [--messages 80] [--rate 20] [--rounds 7]

100 ADMINs with ten sockets each join one conversation; then messages are posted at a steady
rate, in rounds. The CPU of the same posts without sockets is subtracted. After each round, what
one socket received, and when, is written by a bare asyncio server to as many plain connections
at the same pace: the ratio of both is the price of everything but the writing. The median of
the rounds counts. Targets: ratio at most 1.4; 20,000 deliveries a second with p99 under 50 ms.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from typing import Any

import uvloop
from measure import SECRET, BenchServer, Connection
from raw_socket import RawSocket, allow_many_files, client_frame, make_admins, open_sockets

SOCKETS_PER_USER = 10
SENT_AT = re.compile(rb'"event":"message:new".{,600}?"contentText":"(\d+) ')
TEXT = "Thanks for writing in! I had a look at your order and it left our warehouse this morning."

Recording = list[tuple[float, bytes]]


class Audience:
    """All sockets of the benchmark: latencies of all, and a recording of the first."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.frames = 0
        self.recording: Recording = []

    def hear(self, data: bytes) -> None:
        now = time.perf_counter_ns()
        self.frames += data.count(b'{"event":')
        for sent_at in SENT_AT.findall(data):
            self.latencies.append((now - int(sent_at)) / 1e6)

    def record(self, data: bytes) -> None:
        self.recording.append((time.perf_counter(), data))
        self.hear(data)

    def begin(self) -> None:
        """A new round."""
        self.recording = []

    def percentile(self, share: float) -> float:
        return sorted(self.latencies)[int(len(self.latencies) * share)]


async def post(server: BenchServer, token: str, path: str, *, messages: int, rate: float) -> float:
    """CPU seconds of the server process for `messages` posts at `rate` a second."""
    connection = Connection(server.port, token)
    await connection.open()
    started, cpu = time.perf_counter(), server.cpu_seconds()["server"]
    for number in range(messages):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        body = f'{{"contentText":"{time.perf_counter_ns()} {TEXT}"}}'.encode()
        status, answer = await connection.request("POST", path, body)
        assert status == 201, answer
    await asyncio.sleep(1)
    connection.close()
    return server.cpu_seconds()["server"] - cpu


async def join(
    server: BenchServer, conversation_id: str, count: int, audience: Audience
) -> list[RawSocket]:
    tokens = await make_admins(server.dsn(), SECRET, -(-count // SOCKETS_PER_USER))
    each = [token for token in tokens for _ in range(SOCKETS_PER_USER)]
    sockets = await open_sockets(server.port, each[:count], audience.hear)
    command = {"id": 2, "event": "conversation:join", "data": conversation_id}
    for socket in sockets:
        await socket.until(client_frame(command), b'"id":2,"ok":true')
    sockets[0].on_bytes = audience.record
    await asyncio.sleep(5)  # until presence is quiet
    return sockets


class BareServer:
    """`bare()` in a process of its own, with `count` clients."""

    async def start(self, count: int) -> None:
        command = [sys.executable, __file__, "--bare"]
        pipe = subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        port = int(await self._output.readline())
        loop = asyncio.get_running_loop()
        self._clients = [
            await loop.create_connection(lambda: RawSocket(len), "127.0.0.1", port)
            for _ in range(count)
        ]

    async def write(self, recording: Recording) -> float:
        """The CPU seconds of writing the recording to every client."""
        script = [(at - recording[0][0], data.decode("latin-1")) for at, data in recording]
        self._input.write(json.dumps(script).encode() + b"\n")
        return float(await self._output.readline())

    async def stop(self) -> None:
        for transport, _ in self._clients:
            transport.abort()
        self._input.close()
        await self._process.wait()


async def bare() -> None:
    """A line of input is a script; the answer is the CPU that it took."""
    transports: list[Any] = []

    class Writer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(transport)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Writer, "127.0.0.1", 0, backlog=2_000)
    print(server.sockets[0].getsockname()[1], flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        script = [(at, data.encode("latin-1")) for at, data in json.loads(line)]
        started, cpu = time.perf_counter(), time.process_time()
        for at, data in script:
            await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
            for transport in transports:
                transport.write(data)
        print(time.process_time() - cpu, flush=True)


async def measure(server: BenchServer, admin: str, arguments: argparse.Namespace) -> None:
    lead = {"lead": {"name": "Ana"}}
    first, second = (server.call("POST", "/conversations", lead, admin)["id"] for _ in range(2))
    path = "/api/v1/conversations/{}/messages"
    load = {"messages": arguments.messages, "rate": arguments.rate}
    await post(server, admin, path.format(first), messages=100, rate=200)
    alone = await post(server, admin, path.format(first), **load)
    audience, bare_server = Audience(), BareServer()
    await bare_server.start(arguments.sockets)
    sockets = await join(server, second, arguments.sockets, audience)
    rounds = []
    for _ in range(arguments.rounds):
        audience.begin()
        used = await post(server, admin, path.format(second), **load) - alone
        theirs = await bare_server.write(audience.recording)
        rounds.append((used / theirs, used, theirs))
        print(f"server {used:.2f} s, bare transports {theirs:.2f} s: ratio {used / theirs:.2f}")
    await bare_server.stop()
    assert not any(socket.ended for socket in sockets), "a socket was closed"
    expected = arguments.sockets * arguments.messages * arguments.rounds
    assert len(audience.latencies) == expected, f"{len(audience.latencies)} of {expected}"
    report(audience, sorted(rounds)[len(rounds) // 2], arguments)
    for socket in sockets:
        socket.transport.abort()


def report(
    audience: Audience, median: tuple[float, float, float], arguments: argparse.Namespace
) -> None:
    ratio, used, theirs = median
    frames = audience.frames / arguments.rounds / 1e6
    print(
        f"{arguments.rate * arguments.sockets:.0f} message deliveries/s, latency "
        f"p50 {audience.percentile(0.5):.1f}, p99 {audience.percentile(0.99):.1f}, "
        f"max {max(audience.latencies):.1f} ms"
    )
    print(
        f"median: {used / frames:.2f} µs CPU a delivered frame, bare transports "
        f"{theirs / frames:.2f}, ratio {ratio:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=1_000)
    parser.add_argument("--messages", type=int, default=80)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    allow_many_files()
    if arguments.bare:
        asyncio.run(bare())
        return
    with BenchServer(MESSAGING_ANALYSIS__ENABLED="false") as server:
        uvloop.run(measure(server, server.admin_token(), arguments))


if __name__ == "__main__":
    main()
