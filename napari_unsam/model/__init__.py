"""Plain state of a segmentation, without Qt and without napari: planes, prompts, masks, candidates, the history of actions."""
