"""napari's layers, mouse and keys: connects a controller to a viewer."""
