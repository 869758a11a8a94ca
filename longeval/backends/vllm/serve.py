"""The main module of vLLM's server process: `python -m longeval.backends.vllm.serve` with vLLM's flags.

It makes the server's processes end with their parents. vLLM starts its engine's processes by `spawn`, and each imports
the main module, which is this one, before anything of vLLM.

The server is started through its entry module, because `vllm serve` requires a package named vllm (the CPU build has
another name) and `vllm.entrypoints.openai.api_server` is deprecated.
"""

from __future__ import annotations

import os

from longeval.backends.vllm.plugin import die_with_parent

PARENT_VARIABLE = "LONGEVAL_SERVER_PARENT"
"""Environment variable with the parent's process id. Each process writes its own id there for its children."""


def _belong_to_parent() -> None:
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        die_with_parent(int(parent))
        os.environ[PARENT_VARIABLE] = str(os.getpid())


if __name__ in ("__main__", "__mp_main__"):  # the second in processes that multiprocessing spawns
    _belong_to_parent()

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
