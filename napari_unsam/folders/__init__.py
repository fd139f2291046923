"""Many images: one after the other in the viewer, or all at once without it.

- `results`: where the objects of each image of a folder are kept.
- `series`: the images of a folder in the viewer, forward and back.
- `automatic`: objects found without clicks.
- `batch`: automatic objects for all images of a folder, resumable.

`results`, `automatic` and `batch` need neither Qt nor napari.
"""
