"""Masks of one image: run lengths, flat sets, trees of regions, and the overlaps between them."""
