"""A session as far as autosave knows one, and what is done in it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from napari.components import ViewerModel
from napari.layers import Labels
from psygnal import Signal

from napari_unsam.model.history import ActionHistory, Change
from napari_unsam.model.prompts import PointPrompt, Polarity, Prompts
from napari_unsam.viewer.object_write import ObjectWrite

PROMPTS = Prompts(points=(PointPrompt((3.0, 20.5, 40.0)), PointPrompt((1.0, 2.0, 3.0), Polarity.NEGATIVE)))


class _Controller:
    """As far as autosave knows a controller: it has prompts and says when they change."""

    prompts_changed = Signal()

    def __init__(self):
        self.by_image, self.polarity = {}, Polarity.POSITIVE

    def prompts_of(self, source):
        return self.by_image.get(source, Prompts())

    def set_prompts_without_undo(self, source, prompts):
        self.by_image[source] = prompts
        self.prompts_changed.emit()

    def restore_action(self, source, prompts, polarity):
        def put(state):
            self.set_prompts_without_undo(source, state[0])
            self.polarity = state[1]

        return Change('prompts', put, (self.prompts_of(source), self.polarity), (prompts, polarity))


class _Write:
    """One undoable write of objects."""

    def __init__(self, labels, writes):
        self.name, self._labels, self._writes = 'write', labels, writes

    def do(self):
        self._before = self._labels.data.copy()
        for write in self._writes:
            self._labels.data[write.box][write.mask] = write.label
        rows = [{'index': write.label, 'area_px': int(write.mask.sum()), **write.features} for write in self._writes]
        self._labels.features = pd.concat([self._labels.features, pd.DataFrame(rows)], ignore_index=True)
        self._labels.refresh()

    def undo(self):
        self._labels.data[:] = self._before
        self._labels.refresh()


class Session:
    """As far as autosave knows a session: one image, its objects, its controller."""

    image_changed = Signal()
    objects_changed = Signal()

    def __init__(self, image_pixels, name='Cells'):
        self.viewer = ViewerModel()
        self.image = self.viewer.add_image(image_pixels, name=name)
        self.controller, self.history, self._objects, self.channels = _Controller(), ActionHistory(), {}, None

    @property
    def objects(self):
        return self._objects.get(self.image)

    def choose(self, image):
        self.image = image
        self.image_changed.emit()

    def prompt(self, prompts):
        self.controller.set_prompts_without_undo(self.image.unique_id, prompts)

    def ensure_objects(self):
        if self.objects is None:
            self.make_objects(self.image.data.shape)
        return self.objects

    def make_objects(self, shape):
        made = Labels(np.zeros(shape, np.uint32), metadata={'unsam_image': self.image.unique_id})
        self._objects[self.image] = self.viewer.add_layer(made)
        return made

    def set_channels(self, channels):
        self.channels = channels

    def next_label(self):
        return int(self.ensure_objects().data.max()) + 1

    def write_action(self, name, writes):
        return _Write(self.ensure_objects(), writes)

    def write_objects(self, name, writes):
        self.history.do(self.write_action(name, writes))

    def commit(self, label, box, **features):
        mask = np.random.default_rng(label).random([part.stop - part.start for part in box]) < 0.7
        self.write_objects('commit', [ObjectWrite(box, mask, label, features)])


def work_a_little(session):
    session.commit(1, (slice(1, 2), slice(10, 40), slice(20, 70)), stability=0.25, score=0.875, kind='nucleus')
    session.commit(2, (slice(2, 4), slice(100, 150), slice(200, 260)), stability=0.5)
    session.prompt(PROMPTS)
