"""napari plugin: click on an image, step through the nested masks under the click, commit the one you mean.

The modules, each importing only from those above it:

- `_prompts`: clicks and their history, plain values.
- `_planes`: which 2D plane of an nD layer is in view, and its pixels as the model wants them.
- `_candidates`: which of the nested masks are worth a step.
- `_inference`: the one thread in which models run.
- `_controller`: the state of a segmentation, without Qt and without layers.
- `_commit`: writing a mask into a Labels layer, undoable, and its row in the features table.
- `_layers`: the layers that belong to the plugin.
- `_session`: ties a controller to a viewer: mouse, keys, layers.
- `_widget`: the dock; layout and connections only.

Nothing here imports torch; the inference thread does so at the first job.
"""
