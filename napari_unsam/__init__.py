"""napari plugin: click on an image, step through the masks under the click, commit the one you mean.

The modules, each importing only from those above it:

- `_prompts`: clicks, boxes, outlines and scribbles, plain values.
- `state.history`: undo and redo of everything.
- `_frame`, `_planes`, `_pixels`: where an image lies, which 2D plane of it is in view, and its pixels as the user sees them.
- `_targets`, `_masks`: values that go between the modules.
- `_questions`, `_candidates`: what an engine is asked, and the masks to choose from.
- `_inference`, `_jobs`: the one thread in which models run.
- `_engine`: what an engine knows of a plane; `state.embeddings` keeps it for later sessions.
- `_controller`: the state of a segmentation, without Qt and without layers.
- `_commit`: writing objects into a Labels layer, undoable, and their rows in the features table.
- `_contours`, `_layers`, `_edits`, `_inputs`: the layers of the plugin, edits in them, mouse and keys.
- `_session`: ties a controller to a viewer; `state.autosave` saves what is done in it.
- `levels`, `volumes`, `output`, `files`, `adapting`: what the sections of the dock do, without Qt.
- `panels`, `_widget`: the dock; layout and connections only.
- `_dock`: opens it without holding up the window; `_canvas` and `_garbage` keep napari's canvas and Python's collector
  of garbage from doing so later.

Nothing here imports torch; the inference thread does so at the first job.
"""
