"""The version of the package, which is the one of the sidecar that it came with."""

__version__ = "0.1.0"
