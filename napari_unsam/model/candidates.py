"""The candidate masks of a prompt, and which of them is shown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from napari_unsam.model.mask import BoxMask, node_mask
from unsam_mm.masks.granularity import granularity_area, nearest_area
from unsam_mm.masks.hierarchy import MaskHierarchy

NO_NODES = np.empty(0, np.int64)
_MIN_AREA_RATIO = 1.02  # a step to a mask of all but the same area would show nothing


class Place(NamedTuple):
    """Which mask is on screen: see the attributes of `Candidates`."""

    position: int
    chain_index: int | None
    exact: BoxMask | None

    @property
    def nbytes(self) -> int:
        """Bytes of the mask that is kept."""
        return 0 if self.exact is None else self.exact.mask.nbytes


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidate masks, and all nested regions of the main tree.

    Attributes:
        masks: The answers by increasing area.
        position: Index into `masks` of the one that was stepped to; 0 if there is none.
        chain: (K,) nested nodes of `hierarchy`, finest first; may be empty.
        hierarchy: Of the plane; None where there is no chain.
        chain_index: Index into `chain` of the region on screen in place of an answer.
        exact: A mask on screen in place of an answer, asked for by its size.
    """

    masks: tuple[BoxMask, ...] = ()
    position: int = 0
    chain: np.ndarray = field(default_factory=lambda: NO_NODES)
    hierarchy: MaskHierarchy | None = None
    chain_index: int | None = None
    exact: BoxMask | None = None

    @classmethod
    def of_answers(
        cls, answers: list[BoxMask], chain: np.ndarray = NO_NODES, hierarchy: MaskHierarchy | None = None
    ) -> Candidates:
        """Of an engine's answers, best first; the best one is shown."""
        if not answers:
            return NO_CANDIDATES
        order = sorted(range(len(answers)), key=lambda i: answers[i].area_px)
        return cls(tuple(answers[i] for i in order), order.index(0), chain, hierarchy)

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def shown(self) -> BoxMask | None:
        """The current mask."""
        if self.exact is not None:
            return self.exact
        if self.chain_index is not None:
            return node_mask(self.hierarchy, int(self.chain[self.chain_index]))
        return self.masks[self.position] if self.masks else None

    @property
    def place(self) -> Place:
        """Which mask is on screen, for `at`; without a tree the mask itself, as others come later than the first."""
        if self.hierarchy is None:
            return Place(0, None, self.shown)
        return Place(self.position, self.chain_index, self.exact)

    @property
    def rank(self) -> int:
        """The place of the current mask among the answers, from 1; 0 if it is none of them."""
        return self.position + 1 if self.masks and self.chain_index is None and self.exact is None else 0

    def stepped(self, direction: int) -> Candidates:
        """With the next answer shown, coarser for 1 and finer for -1 than what is on screen; the same at the ends."""
        if self.rank:
            return replace(self, position=int(np.clip(self.position + direction, 0, len(self) - 1)))
        shown = self.shown
        if shown is None:
            return self
        places = range(len(self)) if direction > 0 else range(len(self) - 1, -1, -1)
        for place in places:
            ratio = self.masks[place].area_px / shown.area_px
            if (ratio if direction > 0 else 1 / ratio) > _MIN_AREA_RATIO:
                return replace(self, position=place, chain_index=None, exact=None)
        return self

    def slid(self, steps: int) -> Candidates:
        """With another region of the chain shown, coarser for positive steps; begins at the one closest to the current mask."""
        if len(self.chain) == 0:
            return self
        at = self._on_chain() + steps
        return replace(self, chain_index=int(np.clip(at, 0, len(self.chain) - 1)), exact=None)

    def at_granularity(self, granularity: float) -> Candidates:
        """With the region of the chain shown that is nearest to the size of a granularity."""
        if len(self.chain) == 0:
            return self
        wanted_px = granularity_area(granularity, self.hierarchy.leaf_labels.size)
        return replace(self, chain_index=nearest_area(self.hierarchy.area[self.chain], wanted_px), exact=None)

    def with_exact(self, mask: BoxMask) -> Candidates:
        """With a mask shown that was asked for by its size."""
        return replace(self, chain_index=None, exact=mask)

    def at(self, place: Place) -> Candidates:
        """With the mask shown that was on screen at a `place` of the answers to the same question."""
        if self.hierarchy is None:
            return self if place.exact is None else self.starting_with(place.exact)
        return replace(self, **place._asdict())

    def starting_with(self, shown: BoxMask) -> Candidates:
        """With a mask shown that was there before: as the answer that it is, or besides the answers."""
        same = [
            i for i, mask in enumerate(self.masks) if mask.box_xyxy == shown.box_xyxy and mask.area_px == shown.area_px
        ]
        return replace(self, position=same[0], chain_index=None, exact=None) if same else self.with_exact(shown)

    def _on_chain(self) -> int:
        if self.chain_index is not None:
            return self.chain_index
        return nearest_area(self.hierarchy.area[self.chain], self.shown.area_px)


NO_CANDIDATES = Candidates()
