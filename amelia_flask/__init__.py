"""A dependable record of what coding agents did: workflows, events in order, token usage and cost."""

__version__ = "0.1.0"
