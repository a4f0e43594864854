"""MMM4Rec: transferable multi-modal sequential recommendation (arXiv:2506.02916)."""

__version__ = "0.1.0"
