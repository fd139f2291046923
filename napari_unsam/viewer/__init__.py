"""napari's layers, mouse and keys: what ties a controller to a viewer."""
