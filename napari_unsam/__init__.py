"""napari plugin: click on an image, step through the masks under the click, commit one of them.

- `model`: planes, prompts, masks, candidates, the undo history; no Qt.
- `engine`: the inference thread, analysed planes in memory, embeddings on disk.
- `controller`: the state of a segmentation and the actions on it; no Qt, no layers.
- `viewer`: napari's layers, mouse and keys; `viewer.session` connects a controller to a viewer.
- `levels`, `volumes`, `adapt`: the features of the sections of the dock; no Qt.
- `io`, `folders`: measurements, file formats, autosave; folders of images, in the viewer and without it.
- `qt`: the dock and its sections.

A package imports only from those above it. No module imports torch; the inference thread imports it in the first job.
"""

import unsam_mm  # noqa: F401  (imported first: it gives numba a cache folder before a function is compiled)
