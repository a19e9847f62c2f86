"""What the `piccolo` command line looks for: the app with its tables and migrations."""

from messaging_server.migrations import APP_CONFIG

__all__ = ["APP_CONFIG"]
