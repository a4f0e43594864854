"""A miniature Amazon with a planted structure: raw files, pictures and their server."""

from pipeline.synthetic.world import MINIATURE, DomainSpec, World, WorldSpec, build_world, serve

__all__ = ["MINIATURE", "DomainSpec", "World", "WorldSpec", "build_world", "serve"]
