"""Realtime: sockets, rooms, and what reaches them. Only `app` knows it."""

from messaging_server.realtime.domain import Domain, VisitorDomain
from messaging_server.realtime.routes import Realtime

__all__ = ["Domain", "Realtime", "VisitorDomain"]
