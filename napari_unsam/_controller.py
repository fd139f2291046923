"""The state of a segmentation and what can be done to it, without Qt and without layers.

The controller holds what is being segmented, the clicks on it, the masks under them and the job that is running.
It never shows anything: views read its properties when a signal says that something changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from psygnal import Signal

from napari_unsam._candidates import NO_CANDIDATES, Candidates, distinct_candidates
from napari_unsam._inference import Deliver, Embed, InferenceThread, Job, ProgressCallback
from napari_unsam._planes import Plane
from napari_unsam._prompts import PointPrompt, Polarity, PromptHistory
from unsam_mm.hierarchy import MaskHierarchy

FindCandidates = Callable[[MaskHierarchy, np.ndarray, np.ndarray], np.ndarray]

NO_IMAGE = 'Choose an image to begin.'
_HINT = 'J shows a coarser mask, K a finer one, N commits it.'
_NO_FIT = 'No region holds the positive clicks without a negative one; undo a click (U) or add a positive one.'
_CACHED_PX = 256_000_000  # region trees kept for planes seen before: about 4 bytes a pixel, 1 GB


@dataclass(frozen=True)
class Target:
    """What is being segmented: one plane of one image.

    Attributes:
        source: Identifies the image.
        plane: The plane of it.
        name: What the user calls the image.
        read: Gives the pixels of the plane for the model; called in the inference thread.
    """

    source: Hashable
    plane: Plane
    name: str = field(compare=False)
    read: Callable[[], np.ndarray] = field(compare=False)


@dataclass(frozen=True, eq=False)
class Proposal:
    """The mask on screen.

    Attributes:
        plane: The plane that it lies in.
        box_xyxy: Its bounding box in that plane, in pixels; right and bottom edges exclusive.
        mask: (height, width) bool, the mask within the box.
        area_px: Its area in pixels.
        granularity: In [0, 1]; 0 is the finest, 1 the whole plane.
        score: In [0, 1]; how much the mask looks like an object.
        rank: Its place among the masks to choose from, 1 being the finest.
        count: How many masks there are to choose from.
    """

    plane: Plane
    box_xyxy: tuple[int, int, int, int]
    mask: np.ndarray
    area_px: int
    granularity: float
    score: float
    rank: int
    count: int


class Level(Enum):
    """How urgent a status line is."""

    INFO = 'info'
    PROBLEM = 'problem'


@dataclass(frozen=True)
class Status:
    """One line for the user."""

    text: str
    level: Level = Level.INFO


class SegmentationController:
    """One user's work on one image after another.

    Args:
        embed: Turns an image into a region tree; called in the inference thread, reports progress to its second
            argument, and is stopped by that argument raising.
        deliver: Runs a function in the thread that this object belongs to; by default at once, in the caller's.
        find_candidates: Gives the nested nodes of a tree that fit (N, 2) points xy in pixels and (N,) labels 1 or 0.
    """

    state_changed = Signal()
    prompts_changed = Signal()
    proposal_changed = Signal()
    progress_changed = Signal(float, str)

    def __init__(
        self, embed: Embed, deliver: Deliver = lambda call: call(), find_candidates: FindCandidates | None = None
    ) -> None:
        self._inference = InferenceThread(_completed(embed), deliver)
        self._find_candidates = find_candidates or _candidate_nodes
        self._trees: OrderedDict[Target, MaskHierarchy] = OrderedDict()
        self._history = PromptHistory()
        self._candidates = NO_CANDIDATES
        self._target: Target | None = None
        self._source: Hashable = None
        self._embedding: Target | None = None
        self._polarity = Polarity.POSITIVE
        self._status = Status(NO_IMAGE)

    @property
    def target(self) -> Target | None:
        """What is being segmented; None if nothing can be."""
        return self._target

    @property
    def hierarchy(self) -> MaskHierarchy | None:
        """The region tree of the target, once it has been made."""
        return self._trees.get(self._target)

    @property
    def prompts(self) -> tuple[PointPrompt, ...]:
        """All clicks on the image, on any plane, in their order."""
        return self._history.current

    @property
    def can_undo_prompt(self) -> bool:
        """Whether `undo_prompt` would do something."""
        return self._history.can_undo

    @property
    def polarity(self) -> Polarity:
        """What the next plain click says."""
        return self._polarity

    @property
    def is_busy(self) -> bool:
        """Whether a region tree is being made."""
        return self._embedding is not None

    @property
    def status(self) -> Status:
        """The latest line for the user."""
        return self._status

    @property
    def candidates(self) -> Candidates:
        """The masks that fit the clicks on this plane, finest first."""
        return self._candidates

    @property
    def proposal(self) -> Proposal | None:
        """The mask on screen, ready to be committed; None if there is none."""
        node, tree = self._candidates.node, self.hierarchy
        if node is None or tree is None:
            return None
        x0, y0, x1, y1 = box = tuple(int(edge) for edge in tree.boxes_xyxy[node])
        leaves = tree.leaf_labels[y0:y1, x0:x1]
        return Proposal(
            plane=self._target.plane,
            box_xyxy=box,
            mask=(leaves >= tree.first_leaf[node]) & (leaves < tree.last_leaf[node]),
            area_px=int(tree.area[node]),
            granularity=float(tree.granularity[node]),
            score=float(tree.score[node]),
            rank=self._candidates.position + 1,
            count=len(self._candidates),
        )

    def say(self, text: str, level: Level = Level.INFO) -> None:
        """Sets the status line."""
        self._status = Status(text, level)
        self.state_changed.emit()

    def set_target(self, target: Target | None, reason: str = NO_IMAGE) -> None:
        """Changes what is being segmented; clicks stay with their image, and go when another one is chosen.

        A region tree in the making is finished and kept, whichever plane is looked at meanwhile.

        Args:
            target: The new target, or None.
            reason: What the user is told if there is none.
        """
        if target is not None and target == self._target:
            return
        self._target = target
        self._candidates = NO_CANDIDATES  # those of another tree mean nothing here
        if target is not None and target.source != self._source:
            self._source = target.source
            self._history.reset()
            self.prompts_changed.emit()
        self.say(reason if target is None else f'Click on an object in "{target.name}".')
        self._refresh_candidates()

    def forget(self, source: Hashable) -> None:
        """Drops the region trees of an image, because its pixels have changed or it is gone."""
        if self._embedding is not None and self._embedding.source == source:
            self.cancel()
        for target in [target for target in self._trees if target.source == source]:
            del self._trees[target]
        if self._target is not None and self._target.source == source:
            self._candidates = NO_CANDIDATES
            self._refresh_candidates()

    def embed(self) -> None:
        """Makes the region tree of the target in the background, anew if there is one; the job at hand is stopped."""
        target = self._target
        if target is None:
            self.say(self._status.text, Level.PROBLEM)
            return
        self._embedding = target
        self._inference.submit(
            Job(
                read=target.read,
                on_progress=self.progress_changed.emit,
                on_done=lambda tree: self._embedded(target, tree),
                on_failed=self._failed,
            )
        )
        self.progress_changed.emit(0.0, 'Starting')
        self.say(f'Finding the regions of "{target.name}" ...')

    def cancel(self) -> None:
        """Stops the job at hand; clicks are kept."""
        if self.is_busy:
            self._inference.cancel()
            self._embedding = None
            self.say('Cancelled. Click again or press Embed to start over.')

    def close(self, timeout_s: float = 0.0) -> bool:
        """Stops the inference thread; returns whether it has ended within the timeout. The object is of no use afterwards."""
        self._embedding = None
        return self._inference.close(timeout_s)

    def add_prompt(self, position: Sequence[float], polarity: Polarity | None = None) -> bool:
        """Adds a click, and starts making the region tree if there is none yet.

        Args:
            position: Data coordinates in the image.
            polarity: What the click says; by default `polarity`.

        Returns:
            Whether the click lies in the plane in view; if not, the user is told.
        """
        if self._target is None:
            self.say(self._status.text, Level.PROBLEM)
            return False
        if self._target.plane.pixel(position) is None:
            self.say(f'That click lies outside "{self._target.name}".', Level.PROBLEM)
            return False
        prompt = PointPrompt(tuple(float(value) for value in position), polarity or self._polarity)
        self.set_prompts((*self.prompts, prompt))
        return True

    def set_prompts(self, prompts: Sequence[PointPrompt]) -> None:
        """Replaces all clicks, as one step of the history; those outside the image are left out."""
        if self._target is None:
            return
        self._history.replace(tuple(prompt for prompt in prompts if self._target.plane.inside(prompt.position)))
        self._prompts_replaced()
        if self.hierarchy is None and self._embedding != self._target and self._prompts_here():
            self.embed()

    def undo_prompt(self) -> None:
        """Takes back the last change to the clicks: one added, moved or removed, all cleared, or an object committed."""
        if self._history.undo():
            self._prompts_replaced()
        else:
            self.say('There is no click to undo.')

    def clear_prompts(self) -> None:
        """Removes the clicks on the plane in view."""
        here = self._prompts_here()
        self._history.replace(tuple(prompt for prompt in self.prompts if prompt not in here))
        self._prompts_replaced()

    def toggle_polarity(self) -> None:
        """Changes what the next plain click says."""
        self.set_polarity(self._polarity.flipped())

    def set_polarity(self, polarity: Polarity) -> None:
        """Sets what the next plain click says."""
        self._polarity = polarity
        self.state_changed.emit()

    def coarser(self) -> None:
        """Shows the next larger mask."""
        self._step(1)

    def finer(self) -> None:
        """Shows the next smaller mask."""
        self._step(-1)

    def object_committed(self, label: int, area_px: int) -> None:
        """Ends the work on one object: its clicks go, and `undo_prompt` brings them back."""
        self.clear_prompts()
        self.say(f'Object {label} committed, {area_px:,} px. Ctrl-Z takes it back, U brings its clicks back.')

    def _step(self, steps: int) -> None:
        if not len(self._candidates):
            self.say('There is no mask yet; click on an object first.', Level.PROBLEM)
            return
        stepped = self._candidates.stepped(steps)
        at_end = stepped.position == self._candidates.position
        self._candidates = stepped
        self.proposal_changed.emit()
        end = 'coarsest' if steps > 0 else 'finest'
        self.say(f'This is the {end} mask under the clicks.' if at_end else _HINT)

    def _embedded(self, target: Target, tree: MaskHierarchy) -> None:
        self._embedding = None
        self._trees[target] = tree
        self._trees.move_to_end(target)
        while len(self._trees) > 1 and sum(kept.leaf_labels.size for kept in self._trees.values()) > _CACHED_PX:
            self._trees.popitem(last=False)
        if target == self._target:
            self._candidates = NO_CANDIDATES
        self.say(f'"{target.name}" is ready. Click on an object.')
        self._refresh_candidates()

    def _failed(self, reason: str) -> None:
        self._embedding = None
        self.say(reason, Level.PROBLEM)

    def _prompts_here(self) -> list[PointPrompt]:
        if self._target is None:
            return []
        return [prompt for prompt in self.prompts if self._target.plane.pixel(prompt.position) is not None]

    def _prompts_replaced(self) -> None:
        self.prompts_changed.emit()
        self._refresh_candidates()

    def _refresh_candidates(self) -> None:
        tree, here = self.hierarchy, self._prompts_here()
        shown = self._candidates.node
        self._candidates = NO_CANDIDATES
        if tree is not None and here:
            self._candidates = self._fitting(tree, here, shown)
            if len(self._candidates):
                self._status = Status(_HINT)
            else:
                self._status = Status(_NO_FIT, Level.PROBLEM)
        self.proposal_changed.emit()
        self.state_changed.emit()

    def _fitting(self, tree: MaskHierarchy, prompts: list[PointPrompt], shown: int | None) -> Candidates:
        if all(prompt.polarity is Polarity.NEGATIVE for prompt in prompts):
            return NO_CANDIDATES
        rows_columns = np.array([self._target.plane.pixel(prompt.position) for prompt in prompts], np.float64)
        labels = np.array([prompt.polarity.value for prompt in prompts])
        return distinct_candidates(tree, self._find_candidates(tree, rows_columns[:, ::-1], labels), shown)


def _completed(embed: Embed) -> Embed:
    """Has the thread that makes a tree compute its lazy parts too, so that the first click need not wait for them."""

    def embed_completely(image: np.ndarray, progress: ProgressCallback) -> MaskHierarchy:
        tree = embed(image, progress)
        for part in ('first_leaf', 'last_leaf', 'area', 'granularity', 'boxes_xyxy', 'border_share'):
            getattr(tree, part)
        return tree

    return embed_completely


def _candidate_nodes(hierarchy: MaskHierarchy, points_xy: np.ndarray, point_labels: np.ndarray) -> np.ndarray:
    from unsam_mm.prompting import candidate_nodes

    return candidate_nodes(hierarchy, points_xy=points_xy, point_labels=point_labels, box_xyxy=None)
