"""UnSAM's own procedure, for comparison: MaskCut, clusters of patches, and the refinement of their outlines."""
