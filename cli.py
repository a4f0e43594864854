"""Command line."""


def run() -> None:
    """Run."""
