"""The model of the package made to fit one image: a short training on its own pseudo-masks, without labels.

- `pictures`: which parts of the image it learns from.
- `job`: the training in a process of its own, which can be watched, stopped and resumed.
- `steps`: what that process does: ``python -m napari_unsam.adapt FOLDER``.
- `curve`: the losses that it has logged so far.
- `comparison`: what both models make of a plane.
"""
