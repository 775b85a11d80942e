"""Nun: a real-time, replicated key-value database whose first-class citizen is the conflict."""

from nun.version import VERSION as __version__  # noqa: N811

__all__ = ["__version__"]
