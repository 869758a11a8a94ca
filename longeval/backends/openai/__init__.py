"""Models run by an OpenAI-compatible server that somebody else started."""
