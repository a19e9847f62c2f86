"""For the `piccolo` command line only; the server itself reads config.toml.

DATABASE_URL names the database, e.g. `DATABASE_URL=postgresql://… piccolo migrations check`.
"""

import os

from piccolo.conf.apps import AppRegistry

from messaging_server.database import ENGINE, clean_dsn

ENGINE.config = {"dsn": clean_dsn(os.environ.get("DATABASE_URL", ""))}
DB = ENGINE
APP_REGISTRY = AppRegistry(apps=["messaging_server.piccolo_app"])
