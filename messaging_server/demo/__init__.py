"""`python -m messaging_server demo`: a throwaway server, conversations played on it, a verdict.

Everything goes through the API, so the demo is also a proof: it fails when a message is lost,
doubled or out of order, over a socket or by webhook, when a website's visitor and an agent don't
hear each other, or when a conversation is not analysed in the end.
"""

from messaging_server.demo.run import run_demo

__all__ = ["run_demo"]
