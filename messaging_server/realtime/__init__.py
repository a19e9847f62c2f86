"""Realtime: sockets, rooms, and what reaches them. Only `app` knows it."""

from messaging_server.realtime.routes import Realtime

__all__ = ["Realtime"]
