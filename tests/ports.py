"""A port for a server that a test starts."""

from __future__ import annotations

import random
import socket


def free_port():
    """Not one that the system hands out by itself: the server takes it only after a while."""
    for port in random.SystemRandom().sample(range(20000, 30000), 100):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
