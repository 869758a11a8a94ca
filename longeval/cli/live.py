"""The page of a run under way: a server for this machine alone, which makes it anew when cells are stored.

It listens on 127.0.0.1 and answers only requests that name this address, so that no other site's page can read it
through a name of its own that leads here (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from longeval.cli.report import report_command_of, study_reports
from longeval.cli.status import REFRESH_S, left_text, sum_text, wait_for_run
from longeval.errors import LongEvalError, reason
from longeval.report.build import build_document
from longeval.report.collect import collect
from longeval.report.document import Document, Preface
from longeval.report.page.html import page, policy
from longeval.run.status import FolderStatus, State, read_status
from longeval.store.folder import Store

_HOST = "127.0.0.1"
_STORED: tuple[State, ...] = ("done", "failed", "skipped")
"""States of cells that are stored."""


def serve_page(runs: Sequence[str], *, port: int, announce: Callable[[str], None]) -> None:
    """Serves the page of run folders until it is interrupted.

    Args:
        runs: Run folders. One where nothing is yet is waited for.
        port: The port; 0: a free one.
        announce: Gets the page's address once it can be asked for.

    Raises:
        LongEvalError: One is no run folder, or the port is taken.
        KeyboardInterrupt: On Ctrl-C.
    """
    for path in runs:
        wait_for_run(path)
    live = LivePage(runs)
    live.progress()  # a folder that can't be read is told before anything is served
    try:
        server = _Server(live, port)
    except OSError as error:
        raise LongEvalError(f"--port {port}: {reason(error)}", "Name another port, or leave --port out.") from error
    with server:
        announce(f"http://{_HOST}:{server.server_port}/")
        server.serve_forever()


class LivePage:
    """The page of run folders as they are now. Each look at them is kept for a while, since large ones take long."""

    def __init__(self, runs: Sequence[str]) -> None:
        self._runs = [*runs]
        self._lock = threading.Lock()
        self._progress: dict[str, Any] = {}
        self._look_again_at = 0.0
        self._page = ("", "")

    def progress(self) -> dict[str, Any]:
        """`version`: changes with what is stored; `is_running`; `text`: how far the run is, in a line."""
        with self._lock:
            return self._looked()

    def html(self) -> str:
        """The page of what is stored."""
        with self._lock:
            version = self._looked()["version"]
            if self._page[0] != version:
                self._page = version, page(self._document(), version=version)
            return self._page[1]

    def _looked(self) -> dict[str, Any]:
        started = time.monotonic()
        if started >= self._look_again_at:
            found = [read_status(path) for path in self._runs]
            self._progress = {
                "version": " ".join(map(_version, found)),
                "is_running": any(one.alive for one in found),
                "text": "; ".join(_progress_text(one, with_name=len(found) > 1) for one in found),
            }
            took = time.monotonic() - started
            self._look_again_at = time.monotonic() + max(REFRESH_S / 2, 5 * took)
        return self._progress

    def _document(self) -> Document:
        if all(next(iter(Store(path).cells()), None) is None for path in self._runs):
            nothing = "No cell is stored yet. The page shows them as they come."
            return Document(title="Report", preface="", summary=nothing, **_NOTHING)
        command = report_command_of(self._runs)
        studies = study_reports(command)
        collection = collect(self._runs, command)
        return build_document(collection, studies, command=command, preface=Preface(), published=False)


_NOTHING: dict[str, Any] = {"files": (), "folder": "", "notes": (), "sections": (), "records": ()}


def _version(found: FolderStatus) -> str:
    """Another text where other cells are stored, also where one replaced a failed one."""
    counts = "-".join(str(found.states[state]) for state in _STORED)
    with contextlib.suppress(OSError):  # no folder of this machine, or nothing in it yet
        return f"{counts}-{os.stat(os.path.join(found.path, 'cells')).st_mtime_ns}"
    return counts


def _progress_text(found: FolderStatus, *, with_name: bool) -> str:
    """`12 of 20 cells done, 2 running, 6 left. 2 min 05 s left (said 4 s ago)`."""
    parts = [f"{found.path}: {sum_text(found)}" if with_name else sum_text(found)]
    parts += [left_text(runner) for runner in found.alive]
    parts += [] if found.alive else ["Nothing runs in it now"]
    return ". ".join(parts)


class _Server(http.server.ThreadingHTTPServer):
    """The server of one page."""

    daemon_threads = True

    def __init__(self, live: LivePage, port: int) -> None:
        super().__init__((_HOST, port), _Handler)
        self.live = live


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers for the page and for how far the run is."""

    def do_GET(self) -> None:
        """See `BaseHTTPRequestHandler`."""
        assert isinstance(self.server, _Server)
        live, port = self.server.live, self.server.server_port
        names = [f"{name}:{port}" for name in (_HOST, "localhost")] + [_HOST, "localhost"] * (port == 80)
        if (self.headers.get("Host") or "").lower() not in names:
            self.send_error(HTTPStatus.FORBIDDEN, "Another host was asked for")
            return
        answers = {
            "/": ("text/html; charset=utf-8", live.html),
            "/progress": ("application/json", lambda: json.dumps(live.progress())),
        }
        if self.path not in answers:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind, make = answers[self.path]
        try:
            content = make().encode()
        except LongEvalError as error:  # the folder is gone
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
            return
        self.send_response(HTTPStatus.OK)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": f"{policy(is_live=True)}; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Requests are not logged."""
