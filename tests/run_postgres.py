"""A server that is only its embedded Postgres; tests start it, and kill it, as a process.

    python run_postgres.py DATA_DIR [--survivor] [--file-size-limit BYTES]

Prints `ready`, stops at the end of its input or on SIGTERM. `--survivor`: Postgres outlives
us, as on systems without PR_SET_PDEATHSIG.
"""

import argparse
import resource
import signal
import sys
from pathlib import Path

from messaging_server import postgres
from messaging_server.errors import StartupError


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--survivor", action="store_true")
    parser.add_argument("--file-size-limit", type=int)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if options.survivor:
        postgres._LAUNCHER = postgres._LAUNCHER.replace("prctl(1, signal.SIGINT)", "prctl(1, 0)")
    if options.file_size_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_size_limit,) * 2)
    return serve(postgres.EmbeddedPostgres(options.data_dir))


def serve(server: postgres.EmbeddedPostgres) -> int:
    try:
        server.start()
        print("ready", flush=True)
        sys.stdin.read()
    except StartupError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
