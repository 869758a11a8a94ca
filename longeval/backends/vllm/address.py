"""Where vLLM's server listens: whether it can, how it is reached, and whether it answers there."""

from __future__ import annotations

import errno
import http.client
import socket
from http import HTTPStatus

import psutil

from longeval.errors import LongEvalError, reason

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (nothing is bound by it)
"""Hosts that mean all addresses of a machine: the one at which it reaches itself."""


def check_address(host: str, port: int) -> None:
    """Raises LongEvalError where no server can listen at an address; before a model is loaded for it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET  # as vLLM chooses
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
    except OSError as error:
        raise _no_address(host) from error
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM: else a port just left would seem taken
        try:
            tried.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _no_address(host) from error
            raise LongEvalError(
                f"--port {port}: can't be listened on at {host} ({reason(error).lower()})",
                f"Use another, such as --port {port + 1 if port < 65535 else 8000}, or end what listens there.",
            ) from error


def _no_address(host: str) -> LongEvalError:
    return LongEvalError(
        f"--host {host or repr(host)}: no address of this machine", "Such as 127.0.0.1, or 0.0.0.0 for all."
    )


def base_url(host: str, port: int) -> str:
    """The server's address for those on this machine, up to the version."""
    reached = _ANYWHERE.get(host, host)
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}/v1"


def is_up(pid: int, host: str, port: int) -> bool:
    """Whether a process, and not another server that was quicker to take the port, answers there that it is well."""
    try:
        sockets = psutil.Process(pid).net_connections("tcp")
        if not any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in sockets):
            return False
    except psutil.Error:
        return False
    connection = http.client.HTTPConnection(_ANYWHERE.get(host, host), port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
