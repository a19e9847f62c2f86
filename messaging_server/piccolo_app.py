"""What the `piccolo` command line looks for: the app with its tables and migrations."""

from messaging_server.migrations import app_config

APP_CONFIG = app_config()
