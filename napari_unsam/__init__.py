"""napari plugin: click on an image, step through the masks under the click, commit the one you mean.

The rooms, each importing only from itself and from those above it:

- `_words`, `_torch`, `_gui_thread`, `_docked`, `_canvas`: words for counts; torch, Qt and napari kept from holding
  the window up, or bringing it down.
- `_label_boxes`: the bounding boxes of the objects in an array.
- `_prompts`, `_frame`, `_planes`: clicks, boxes, outlines and scribbles; where an image lies, and which plane of it is in view.
- `_inference`, `_jobs`, `_settings`: the one thread in which models run, and the plugin's page in the preferences.
- `state.history`, `state.embeddings`: undo and redo of everything; planes kept on disk.
- `_pixels`, `_sources`: an image's pixels as the user sees them, and which channels those are.
- `_targets`, `_masks`, `_questions`, `_candidates`: what an engine is asked, and the masks to choose from.
- `_engine`: what an engine knows of a plane.
- `_actions`, `_answers`, `_controller`: the state of a segmentation, without Qt and without layers.
- `_pixel_changes`, `_commit`: writing objects into a Labels layer, undoable, and their rows in the features table.
- `output`: measurements and file formats.
- `_contours`, `_layers`, `_edits`, `_inputs`, `_placing`: the layers of the plugin, edits in them, mouse and keys.
- `_objects`, `_asides`, `_stack`, `_session`: tie a controller to a viewer.
- `_changes`: tells of changes of layers and sessions, whoever makes them.
- `state.records`, `state.autosave`: what is done in a session is saved.
- `levels`, `volumes`, `files`, `adapting`: what the sections of the dock do, without Qt.
- `panels`, `_widget`, `_dock`: the dock; layout and connections only.
- `_commands`, `_sample_data`, `__main__`: what napari's palette and menus offer, and the command line.

Nothing here imports torch; the inference thread does so at the first job.
"""

import unsam_mm  # noqa: F401  (before the first compiled function: it finds numba a folder)
