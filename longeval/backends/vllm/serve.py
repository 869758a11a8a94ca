"""The process of vLLM's server, tied to `longeval serve`: `python -m longeval.backends.vllm.serve` with vLLM's flags.

vLLM starts its engine's processes by `spawn`, and each of them imports the program's main module first, which is this
one: so all are tied to their parents before they import anything of vLLM, from the first moment on.

Of vLLM's ways to start a server this is the one without drawbacks: `vllm serve` asks for a package called vllm (the
build for CPUs is called otherwise), `vllm.entrypoints.openai.api_server` is deprecated.
"""

from __future__ import annotations

import os

from longeval.backends.vllm.plugin import die_with_parent

PARENT_VARIABLE = "LONGEVAL_SERVER_PARENT"
"""Tells a process that is started who its parent is: each one writes its own id there for those that it starts."""


def _belong_to_parent() -> None:
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        die_with_parent(int(parent))
        os.environ[PARENT_VARIABLE] = str(os.getpid())


if __name__ in ("__main__", "__mp_main__"):  # the second in what multiprocessing spawns
    _belong_to_parent()

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
