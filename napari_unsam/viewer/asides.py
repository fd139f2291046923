"""Objects that are set aside with the mask they have, and the commit of all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Vectors
from napari.layers.base import LayerLock

from napari_unsam.keys import KEYS, TO_UNDO
from napari_unsam.model.history import Together
from napari_unsam.model.plane import Plane
from napari_unsam.model.prompts import Prompts, SetAside
from napari_unsam.model.questions import on_plane
from napari_unsam.model.targets import Level, Proposal
from napari_unsam.model.words import counted
from napari_unsam.viewer.commit import ObjectWrite, write_of
from napari_unsam.viewer.contours import placed_outline
from napari_unsam.viewer.layers import following, insert_quietly
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.granularity import area_granularity

if TYPE_CHECKING:
    from napari_unsam.viewer.port import SessionPort

ASIDES_NAME = 'UnSAM pending'
ASIDES_COLOUR = '#56b4e9'
_OUTLINE_SHARE = 1 / 250  # of a plane's longer side
_NOTHING_YET = 'No mask to keep; click on an object first.'
_NOTHING_FREE = (
    f'Nothing was committed: other objects own all pixels of this mask. Choose a larger mask ({KEYS["coarser"].key}), '
    f'untick "Keep existing objects", or clear the prompts ({KEYS["clear_prompts"].key}).'
)


def aside_of(proposal: Proposal, object_id: int) -> SetAside:
    """The mask on screen as a plain value."""
    from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

    return SetAside(
        object_id=object_id,
        axes=proposal.plane.axes,
        index=proposal.plane.index,
        box_xyxy=tuple(int(edge) for edge in proposal.box_xyxy),
        counts=rle_to_json(encode_bitmaps(proposal.mask[None])[0])['counts'],
        granularity=float(proposal.granularity),
        score=float(proposal.score),
    )


def proposal_of(aside: SetAside, shape: tuple[int, ...]) -> Proposal:
    """The mask of an object that was set aside, on an array of a shape."""
    from unsam_mm.masks.rle import decode_rles, rle_from_json

    x0, y0, x1, y1 = aside.box_xyxy
    size_hw = y1 - y0, x1 - x0
    mask = decode_rles([rle_from_json({'size': size_hw, 'counts': aside.counts})], size_hw)[0]
    plane = Plane(tuple(shape), aside.axes, aside.index)
    area_px = int(mask.sum())
    granularity = float(area_granularity(area_px, np.prod(plane.size_hw)))  # earlier versions noted another number
    return Proposal(plane, aside.box_xyxy, mask, area_px, granularity, aside.score, rank=0, count=0)


class Asides:
    """What is set aside on the image of a session: shown by outlines of their own, and committed with the mask on screen.

    Args:
        session: Whose image it is.
    """

    def __init__(self, session: SessionPort) -> None:
        self._session = session
        self._shown: tuple[SetAside, ...] = ()
        self.outlines: Vectors | None = None

    def set_aside(self) -> None:
        """Keeps the mask on screen, with its prompts, for a later commit; the next prompt begins another object."""
        controller = self._session.controller
        proposal = controller.proposal
        if proposal is None:
            controller.say(_NOTHING_YET, Level.PROBLEM)
            return
        aside = aside_of(proposal, controller.prompts_here.object_id)
        controller.history.do(controller.next_object(Prompts(), aside))
        count = counted(len(controller.prompts.asides), 'object')
        controller.say(f'{count} kept; click on another object. {KEYS["commit"].key} commits all.')

    def commit(self, with_shown: bool = True) -> None:
        """Writes what is set aside, on any plane, and the mask on screen into the layer of objects, as one action.

        Args:
            with_shown: Whether the mask on screen is meant too.
        """
        try:
            self._commit(with_shown)
        except UnSAMError as error:
            self._session.controller.say(str(error), Level.PROBLEM)

    def _commit(self, with_shown: bool) -> None:
        session, controller = self._session, self._session.controller
        proposal = controller.proposal if with_shown else None
        if proposal is None and not controller.prompts.asides:
            controller.say('There is no mask to commit; click on an object first.', Level.PROBLEM)
            return
        labels = session.ensure_objects()
        writes, done, left = self._writes(labels.data, proposal)
        if not writes:
            controller.say(_NOTHING_FREE, Level.PROBLEM)
            return
        what = f'object {writes[0].label}' if len(writes) == 1 else f'{len(writes)} objects'
        name = f'commit {what}'
        session.history.do(Together(name, [session.writing(name, writes), controller.next_object(done)]))
        labels.selected_label = writes[-1].label
        area_px = sum(int(write.mask.sum()) for write in writes)
        overlapping = f' {left} left out (overlap with existing objects).' if left else ''
        controller.say(f'{what[0].upper()}{what[1:]} committed, {area_px:,} px.{overlapping} {TO_UNDO}')

    def show(self, asides: tuple[SetAside, ...], shape: tuple[int, ...]) -> None:
        """Draws the outlines."""
        if asides == self._shown:
            return
        if self.outlines is None:
            self._make_outlines()
        outlines = [placed_outline(proposal_of(aside, shape)) for aside in asides]
        self._shown, self.outlines.visible = asides, bool(asides)
        self.outlines.data = np.concatenate([np.zeros((0, 2, len(shape))), *outlines])

    def let_go(self) -> Vectors | None:
        """Has nothing more to do with the layer of the outlines, which is to be removed; returns it."""
        outlines, self.outlines, self._shown = self.outlines, None, ()
        if outlines is not None:
            self._session.unbind(outlines)
        return outlines

    def _writes(self, labels: np.ndarray, shown: Proposal | None) -> tuple[list[ObjectWrite], Prompts, int]:
        """What can be written, the prompts that are done with then, and how many objects have no pixel left."""
        session, controller = self._session, self._session.controller
        prompts = controller.prompts
        wanted = [
            (proposal_of(aside, labels.shape), _prompts_of(prompts, aside, labels.shape)) for aside in prompts.asides
        ]
        if shown is not None:
            wanted.append((shown, controller.prompts_here))
        writes, done, first = [], Prompts(), session.next_label()
        for proposal, own in wanted:
            write = write_of(proposal, first + len(writes), labels, session.keep_existing)
            if write is not None and session.keep_existing:
                write = _beside(write, writes)
            if write is not None:
                writes.append(write)
                done = Prompts(
                    done.points + own.points, done.shapes + own.shapes, done.object_id, done.asides + own.asides
                )
        return writes, done, len(wanted) - len(writes)

    def _make_outlines(self) -> None:
        session = self._session
        size_px = max(session.controller.target.plane.size_hw)
        self.outlines = Vectors(
            np.zeros((0, 2, len(session.frame.shape))),
            ndim=len(session.frame.shape),
            name=ASIDES_NAME,
            opacity=1.0,
            edge_color=ASIDES_COLOUR,
            edge_width=max(_OUTLINE_SHARE * size_px, 0.2),
            vector_style='line',
            **following(session.frame),
        )
        insert_quietly(session.viewer, self.outlines)
        self.outlines.locked = LayerLock.DELETION
        session.bind(self.outlines)


def _prompts_of(prompts: Prompts, aside: SetAside, shape: tuple[int, ...]) -> Prompts:
    """An object that was set aside, and the prompts that led to it."""
    here = on_plane(prompts, Plane(tuple(shape), aside.axes, aside.index))
    return here.keeping(lambda prompt: prompt.object_id == aside.object_id)


def _beside(write: ObjectWrite, before: Sequence[ObjectWrite]) -> ObjectWrite | None:
    """The pixels of an object that objects before it do not take; None if none is left."""
    mask = write.mask.copy()
    for other in before:
        shared = [
            slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(write.region, other.region, strict=True)
        ]
        if all(part.start < part.stop for part in shared):
            mask[_within(shared, write.region)] &= ~other.mask[_within(shared, other.region)]
    return replace(write, mask=mask) if mask.any() else None


def _within(shared: Sequence[slice], region: Sequence[slice]) -> tuple[slice, ...]:
    return tuple(slice(part.start - own.start, part.stop - own.start) for part, own in zip(shared, region, strict=True))
