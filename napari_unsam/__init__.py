"""napari plugin: click on an image, step through the masks under the click, commit the one you mean.

- `model`: planes, prompts, masks, candidates, the history of actions; plain values, without Qt.
- `engine`: the one thread in which models run, what they know of each plane, and planes that are kept on disk.
- `controller`: the state of a segmentation and what can be done to it; no Qt, no layers.
- `viewer`: napari's layers, mouse and keys; `viewer.session` ties a controller to a viewer.
- `levels`, `volumes`, `adapt`: what the sections of the dock do; no Qt.
- `io`, `folders`: measurements, file formats, autosave; folders of images, in the viewer and without it.
- `qt`: the dock and its sections.

A package imports only from those above it. Nothing here imports torch; the inference thread does so at the first job.
"""

import unsam_mm  # noqa: F401  (before the first compiled function: it finds numba a folder)
