"""Presets, the demo and the studies: they import the core, never the reverse."""
