"""Idle sockets: memory of the server process for each of 5,000 authenticated ones.

    python benchmarks/idle.py [--sockets 5000]

Ten sockets a user. Resident memory of the server before and after, and again after the first
round of pings. Target: at most 20 KiB each.
"""

import argparse
import asyncio
import time

from measure import SECRET, BenchServer
from raw_socket import allow_many_files, make_admins, open_sockets

SOCKETS_PER_USER = 10
WARM_UP_SOCKETS = 100


async def measure(server: BenchServer, count: int) -> float:
    users = (count + WARM_UP_SOCKETS) // SOCKETS_PER_USER + 1
    tokens = await make_admins(server.dsn(), SECRET, users)
    each = [token for token in tokens for _ in range(SOCKETS_PER_USER)]
    warm = await open_sockets(server.port, each[-WARM_UP_SOCKETS:])
    before, cpu, started = server.resident_bytes(), server.cpu_seconds(), time.perf_counter()
    sockets = await open_sockets(server.port, each[:count])
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
    arguments = parser.parse_args()
    allow_many_files()
    with BenchServer(MESSAGING_ANALYSIS__ENABLED="false") as server:
        server.admin_token()
        asyncio.run(measure(server, arguments.sockets))


if __name__ == "__main__":
    main()
