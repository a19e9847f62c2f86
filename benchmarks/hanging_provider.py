"""Chat beside a provider that never answers: the p99 of sending, with and without it.

    python benchmarks/hanging_provider.py

Two servers in turn, several rounds: one analyses with `local`, the other asks an
OpenAI-compatible endpoint that accepts every call and says nothing. Both analyse after half a
second, so that calls hang during the whole measurement. Target: within 10 %.
"""

import asyncio
import contextlib
import itertools
import statistics
import time

from measure import BenchServer, Connection

CONNECTIONS = 8
CONVERSATIONS = 100
MESSAGES = 2_000
ROUNDS = 5
BODY = b'{"contentText":"Thanks for writing in! Your order left our warehouse this morning."}'
QUICK = {
    "MESSAGING_ANALYSIS__QUIET_SECONDS": "0.5",
    "MESSAGING_ANALYSIS__MAX_WAIT_SECONDS": "0.5",
}


async def never_answer(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(3_600)


async def p99_milliseconds(server: BenchServer, token: str, paths: list[str]) -> float:
    times: list[float] = []
    left = iter(range(MESSAGES))
    cycle = itertools.cycle(paths)

    async def work() -> None:
        connection = Connection(server.port, token)
        await connection.open()
        for _ in left:
            started = time.perf_counter()
            status, answer = await connection.request("POST", next(cycle), BODY)
            assert status == 201, answer
            times.append(time.perf_counter() - started)
        connection.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return statistics.quantiles(times, n=100)[98] * 1_000


async def new_paths(server: BenchServer, token: str) -> list[str]:
    connection = Connection(server.port, token)
    await connection.open()
    paths = []
    for _ in range(CONVERSATIONS):
        _, answer = await connection.request(
            "POST", "/api/v1/conversations", b'{"lead":{"name":"Ana"}}'
        )
        at = answer.index(b'"id":"') + 6
        paths.append(f"/api/v1/conversations/{answer[at : at + 36].decode()}/messages")
    connection.close()
    return paths


async def compare() -> None:
    endpoint = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    hanging_url = f"http://127.0.0.1:{endpoint.sockets[0].getsockname()[1]}/v1"
    hanging = {
        **QUICK,
        "MESSAGING_AI__PROVIDER": "openai",
        "MESSAGING_AI__MODEL": "silent",
        "MESSAGING_AI__BASE_URL": hanging_url,
    }
    with BenchServer(**QUICK) as without, BenchServer(**hanging) as beside:
        tokens = {server: server.admin_token() for server in (without, beside)}
        paths = {server: await new_paths(server, tokens[server]) for server in tokens}
        ratios = []
        for _ in range(ROUNDS):
            plain = await p99_milliseconds(without, tokens[without], paths[without])
            slow = await p99_milliseconds(beside, tokens[beside], paths[beside])
            ratios.append(slow / plain)
            print(f"p99 {plain:6.1f} ms with local, {slow:6.1f} ms beside a hanging provider")
        print(f"median ratio {statistics.median(ratios):.2f} (target 1.10)")
    endpoint.close()


if __name__ == "__main__":
    asyncio.run(compare())
