"""Adapts the packaged model to one image: a short training on its own pseudo-masks, without labels.

- `crops`: the crops of the image to train on.
- `job`: the training in its own process, which can be watched, stopped and resumed, and the losses that it has logged.
- `steps`: what that process does: ``python -m napari_unsam.adapt FOLDER``.
- `comparison`: what both models make of a plane.
"""
