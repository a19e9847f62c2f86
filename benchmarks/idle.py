"""Idle sockets: memory of the server process for each of 5,000 authenticated ones.

    python benchmarks/idle.py [--sockets 5000] [--visitors]

Ten sockets a user, or one a visitor of a website. Resident memory of the server before and
after, and again after the first round of pings. Target: at most 20 KiB each.
"""

import argparse
import asyncio
import time

from measure import SECRET, BenchServer
from raw_socket import allow_many_files, make_admins, make_visitors, open_sockets

SOCKETS_PER_USER = 10
WARM_UP_SOCKETS = 100


async def tokens_of_users(server: BenchServer, count: int) -> list[str]:
    tokens = await make_admins(server.dsn(), SECRET, count // SOCKETS_PER_USER + 1)
    return [token for token in tokens for _ in range(SOCKETS_PER_USER)]


async def measure(server: BenchServer, count: int, *, visitors: bool) -> float:
    path = "/ws/public" if visitors else "/ws"
    if visitors:
        each = await make_visitors(server.dsn(), SECRET, count + WARM_UP_SOCKETS)
    else:
        each = await tokens_of_users(server, count + WARM_UP_SOCKETS)
    warm = await open_sockets(server.port, each[-WARM_UP_SOCKETS:], path=path)
    before, cpu, started = server.resident_bytes(), server.cpu_seconds(), time.perf_counter()
    sockets = await open_sockets(server.port, each[:count], path=path)
    seconds = time.perf_counter() - started
    used = server.cpu_seconds()["server"] - cpu["server"]
    print(f"{count} sockets opened: {count / seconds:.0f}/s, {used / count * 1e6:.0f} µs CPU each")
    await asyncio.sleep(2)
    report("authenticated and idle", server, before, count)
    cpu, started = server.cpu_seconds(), time.perf_counter()
    await asyncio.sleep(30)
    used = server.cpu_seconds()["server"] - cpu["server"]
    print(f"CPU while idle, pings included: {used / (time.perf_counter() - started):.1%} of a core")
    assert not any(socket.ended for socket in sockets + warm), "a socket was closed"
    return report("after a round of pings", server, before, count)


def report(when: str, server: BenchServer, before: int, count: int) -> float:
    each = (server.resident_bytes() - before) / count / 1024
    print(f"{when}: {each:.1f} KiB a socket (server process {server.resident_bytes() >> 20} MiB)")
    return each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=5_000)
    parser.add_argument("--visitors", action="store_true", help="sockets of visitors, not users")
    arguments = parser.parse_args()
    allow_many_files()
    with BenchServer(
        MESSAGING_ANALYSIS__ENABLED="false",
        MESSAGING_REALTIME__VISITOR_SOCKETS_PER_ADDRESS="1000000",
    ) as server:
        server.admin_token()
        asyncio.run(measure(server, arguments.sockets, visitors=arguments.visitors))


if __name__ == "__main__":
    main()
