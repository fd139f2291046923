"""Adapts the packaged model to one image: a short training on its own pseudo-masks, without labels.

- `crops`: the crops of the image to train on.
- `job`: starts, polls, stops and resumes the training, which runs in its own process.
- `steps`: the steps of that process: ``python -m napari_unsam.adapt FOLDER``.
- `comparison`: the objects of both models on a plane.
"""
