"""longeval: how well does a RoPE model work once its context is stretched?

The package follows one direction (see README, "Map"): a request becomes a spec, a spec becomes cells, cells become
records, records become reports. Importing `longeval` itself imports nothing heavy.
"""

__version__ = "0.1.0"

DISTRIBUTION = "longeval-rope"
"""What pip calls this package; `longeval` on the index is somebody else's."""
