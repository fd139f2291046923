"""UnSAM's published procedure, for comparison: MaskCut, patch clustering, and mask refinement."""
