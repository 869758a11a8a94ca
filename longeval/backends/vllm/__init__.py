"""Models run by vLLM: an engine in this process, and the server of `longeval serve`."""
