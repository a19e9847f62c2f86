"""Starting: time to the first 200 on an empty and on an existing data directory, and memory.

    python benchmarks/start.py

Targets: at most 4 s the first time, 1.5 s later; at most 130 MiB for the idle server process.
"""

import statistics

from measure import BenchServer

MEBIBYTE = 1_048_576
LATER_STARTS = 5


def main() -> None:
    server = BenchServer()
    with server:
        print(f"first start   {server.start_seconds:6.2f} s (target 4)")
        later = []
        for _ in range(LATER_STARTS):
            server.stop()
            server.start()
            later.append(server.start_seconds)
        print(
            f"later starts  {statistics.median(later):6.2f} s (target 1.5; {min(later):.2f} best)"
        )
        print(f"idle server   {server.resident_bytes() / MEBIBYTE:6.0f} MiB resident (target 130)")
        postgres = sum(p.memory_full_info().pss for p in server.processes()[1:])
        print(f"its Postgres  {postgres / MEBIBYTE:6.0f} MiB (shared pages counted once)")


if __name__ == "__main__":
    main()
