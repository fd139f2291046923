"""The one thread in which models run, what they know of each plane, and the planes that are kept on disk."""
