"""The state of a segmentation, without Qt: planes, prompts, masks, candidates, the undo history."""
