"""Many images: one by one in the viewer, or all in a batch without it.

- `results`: the files with the objects of each image of a folder.
- `series`: the images of a folder in the viewer.
- `automatic`: objects without clicks.
- `batch`: automatic objects for all images of a folder, resumable.

`results`, `automatic` and `batch` need neither Qt nor napari.
"""
