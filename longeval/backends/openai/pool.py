"""Several requests to a server at once, so that it can batch them; a new one starts as soon as one is done."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from longeval.backends.openai.client import LOOK_UP_S

Key = TypeVar("Key")
Body = dict[str, Any]
Post = Callable[[Body, threading.Event], Body]


def in_flight(post: Post, bodies: Iterable[tuple[Key, Body]], concurrency: int) -> Iterator[tuple[Key, Body]]:
    """Yields (key, answer) as answers come.

    Bodies are taken from `bodies` only when they can be sent, in the consumer's thread: long prompts never lie about
    by the hundred. Threads are daemons: Ctrl-C doesn't wait for what a server still computes.

    Args:
        post: Sends a body; the event says that the answer is no longer wanted.
        bodies: (key, body) of each request.
        concurrency: Most at once.

    Raises:
        Exception: The first that `post` or `bodies` raises; nothing new is sent then.
    """
    stop = threading.Event()
    asked: queue.SimpleQueue[tuple[Key, Body] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Key, Body | Exception]] = queue.SimpleQueue()

    def work() -> None:
        while (job := asked.get()) is not None:
            if stop.is_set():
                return
            key, body = job
            try:
                answer: Body | Exception = post(body, stop)
            except Exception as error:
                answer = error
            done.put((key, answer))

    waiting = iter(bodies)
    threads = started = 0
    try:
        while True:
            while started < concurrency and (job := next(waiting, None)) is not None:
                if started == threads:
                    threading.Thread(target=work, daemon=True, name=f"longeval-request-{threads}").start()
                    threads += 1
                asked.put(job)
                started += 1
            if not started:
                return
            try:
                key, answer = done.get(timeout=LOOK_UP_S)
            except queue.Empty:
                continue
            started -= 1
            if isinstance(answer, Exception):
                raise answer
            yield key, answer
    finally:
        stop.set()
        for _ in range(threads):
            asked.put(None)
