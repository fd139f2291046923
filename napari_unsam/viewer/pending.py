"""Pending objects, which wait for a later commit, and the commit of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers.base import LayerLock

from napari_unsam.keys import KEYS, TO_UNDO
from napari_unsam.model.history import ActionGroup
from napari_unsam.model.plane import Plane
from napari_unsam.model.plane_prompts import on_plane
from napari_unsam.model.prompts import PendingObject, Prompts
from napari_unsam.model.targets import Proposal
from napari_unsam.model.text import counted
from napari_unsam.viewer.contours import outline_of
from napari_unsam.viewer.layers import outline_layer
from napari_unsam.viewer.object_write import ObjectWrite, limited_to_free
from napari_unsam.viewer.port import SessionPort
from napari_unsam.viewer.workarounds import insert_quietly
from unsam_mm.masks.rle import decode_rles, encode_bitmaps, rle_from_json, rle_to_json

if TYPE_CHECKING:
    from napari.layers import Vectors

PENDING_NAME = 'UnSAM pending'
PENDING_COLOUR = '#56b4e9'
_OUTLINE_SHARE = 1 / 250  # outline width as a share of the plane's longer side
_NOTHING_YET = 'No mask to keep; click on an object first.'
_NOTHING_FREE = (
    'Nothing was committed: other objects have all pixels of this mask. Choose another mask, '
    f'untick "Keep existing objects", or clear the prompts ({KEYS["clear_prompts"].key}).'
)


def pending_object(proposal: Proposal, object_id: int) -> PendingObject:
    """Converts the current mask to a pending object."""
    return PendingObject(
        object_id=object_id,
        axes=proposal.plane.axes,
        index=proposal.plane.index,
        box_xyxy=tuple(int(edge) for edge in proposal.box_xyxy),
        counts=rle_to_json(encode_bitmaps(proposal.mask[None])[0])['counts'],
        granularity=float(proposal.granularity),
        score=float(proposal.score),
    )


def proposal_of(kept: PendingObject, shape: tuple[int, ...]) -> Proposal:
    """The mask of a pending object; `shape` is the shape of the array."""
    x0, y0, x1, y1 = kept.box_xyxy
    size_hw = y1 - y0, x1 - x0
    mask = decode_rles([rle_from_json({'size': size_hw, 'counts': kept.counts})], size_hw)[0]
    plane = Plane(tuple(shape), kept.axes, kept.index)
    return Proposal(kept.box_xyxy, mask, kept.granularity, kept.score, plane=plane)


class PendingObjects:
    """The pending objects of the image of a session, shown as outlines and committed with the current mask."""

    def __init__(self, session: SessionPort) -> None:
        self._session = session
        self._shown: tuple[PendingObject, ...] = ()
        self.outlines: Vectors | None = None

    def keep(self) -> None:
        """Keeps the current mask and its prompts for a later commit; the next prompt starts another object."""
        controller = self._session.controller
        proposal = controller.proposal
        if proposal is None:
            controller.show_problem(_NOTHING_YET)
            return
        kept = pending_object(proposal, controller.prompts_here.object_id)
        controller.history.do(controller.next_object_action(Prompts(), kept))
        count = counted(len(controller.prompts.pending), 'object')
        controller.show_info(f'{count} kept; click on another object. {KEYS["commit"].key} commits all.')

    def commit(self, include_current: bool = True) -> None:
        """Writes the pending objects of all planes and the current mask into the layer of objects, as one action.

        Args:
            include_current: True to include the current mask.
        """
        self._session.controller.reporting(self._commit)(include_current)

    def _commit(self, include_current: bool) -> None:
        session, controller = self._session, self._session.controller
        proposal = controller.proposal if include_current else None
        if proposal is None and not controller.prompts.pending:
            controller.show_problem('There is no mask to commit; click on an object first.')
            return
        labels = session.ensure_objects()
        writes, done, left = self._writes(labels.data, proposal)
        if not writes:
            controller.show_problem(_NOTHING_FREE)
            return
        what = f'object {writes[0].label}' if len(writes) == 1 else f'{len(writes)} objects'
        name = f'commit {what}'
        controller.history.do(
            ActionGroup(name, [session.write_action(name, writes), controller.next_object_action(done)])
        )
        labels.selected_label = writes[-1].label
        area_px = sum(int(write.mask.sum()) for write in writes)
        overlapping = f' {left} left out (overlap with existing objects).' if left else ''
        controller.show_info(f'{what[0].upper()}{what[1:]} committed, {area_px:,} px.{overlapping} {TO_UNDO}')

    def _writes(self, labels: np.ndarray, shown: Proposal | None) -> tuple[list[ObjectWrite], Prompts, int]:
        """The objects to write, the prompts that a commit removes, and the number of objects without a free pixel."""
        session, controller = self._session, self._session.controller
        prompts, keep = controller.prompts, session.keep_existing
        candidates = [(proposal_of(kept, labels.shape), kept.object_id) for kept in prompts.pending]
        if shown is not None:
            candidates.append((shown, controller.prompts_here.object_id))
        writes, done, first = [], Prompts(), session.next_label()
        for number, (proposal, object_id) in enumerate(candidates):
            plane = proposal.plane
            earlier = [other for other, _ in candidates[:number] if keep and other.plane == plane]
            row = {'score': proposal.score}
            write = ObjectWrite.on_plane(plane, proposal.without(earlier), first + len(writes), row)
            left = limited_to_free([write], labels) if keep else [write]
            if left:
                writes += left
                own = _prompts_of(prompts, plane, object_id)
                done = Prompts(
                    done.points + own.points, done.shapes + own.shapes, done.object_id, done.pending + own.pending
                )
        return writes, done, len(candidates) - len(writes)

    def show(self, pending: tuple[PendingObject, ...], shape: tuple[int, ...]) -> None:
        """Draws the outlines of pending objects; `shape` is the shape of the array."""
        if pending == self._shown:
            return
        if self.outlines is None:
            self._make_outlines()
        outlines = [outline_of(proposal_of(kept, shape)) for kept in pending]
        self._shown, self.outlines.visible = pending, bool(pending)
        self.outlines.data = np.concatenate([np.zeros((0, 2, len(shape))), *outlines])

    def detach(self) -> Vectors | None:
        """Stops using the layer of the outlines and returns it, so that it can be removed; None if there is none."""
        outlines, self.outlines, self._shown = self.outlines, None, ()
        if outlines is not None:
            self._session.inputs.unbind(outlines)
        return outlines

    def _make_outlines(self) -> None:
        session = self._session
        self.outlines = outline_layer(session.frame, PENDING_NAME, PENDING_COLOUR)
        self.outlines.edge_width = max(_OUTLINE_SHARE * max(session.controller.target.plane.size_hw), 0.2)
        insert_quietly(session.viewer, self.outlines)
        self.outlines.locked = LayerLock.DELETION
        session.inputs.bind(self.outlines)


def _prompts_of(prompts: Prompts, plane: Plane, object_id: int) -> Prompts:
    """The prompts of one object on a plane, and the object itself if it is pending."""
    return on_plane(prompts, plane).filtered(lambda prompt: prompt.object_id == object_id)
