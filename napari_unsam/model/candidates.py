"""The candidate masks of a prompt, and which of them is shown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from napari_unsam.model.mask import BoxMask, node_mask
from unsam_mm.masks.granularity import granularity_area, nearest_area
from unsam_mm.masks.hierarchy import MaskHierarchy

NO_NODES = np.empty(0, np.int64)
_MIN_AREA_RATIO = 1.02  # of the areas of two masks: a smaller step would hardly be visible


class Selection(NamedTuple):
    """Which mask is shown: see the attributes of `Candidates`."""

    position: int
    chain_index: int | None
    other_mask: BoxMask | None

    @property
    def nbytes(self) -> int:
        """Memory of the mask in bytes."""
        return 0 if self.other_mask is None else self.other_mask.mask.nbytes


@dataclass(frozen=True, eq=False)
class Candidates:
    """The predicted masks for a prompt, the nested regions of the main tree under it, and the shown mask.

    The methods that show another mask return new candidates.

    Attributes:
        masks: The predicted masks by increasing area.
        position: Index of the shown mask in `masks`, unless `chain_index` or `other_mask` is set.
        chain: (K,) nested nodes of `hierarchy`, finest first; may be empty.
        hierarchy: The region trees of the plane; None if the plane is analysed in tiles.
        chain_index: Index of the shown region in `chain`; None if no region is shown.
        other_mask: The shown mask if it is in neither `masks` nor `chain`, such as one searched by its size; else None.
    """

    masks: tuple[BoxMask, ...] = ()
    position: int = 0
    chain: np.ndarray = field(default_factory=lambda: NO_NODES)
    hierarchy: MaskHierarchy | None = None
    chain_index: int | None = None
    other_mask: BoxMask | None = None

    @classmethod
    def from_masks(
        cls, masks: list[BoxMask], chain: np.ndarray = NO_NODES, hierarchy: MaskHierarchy | None = None
    ) -> Candidates:
        """Candidates from an engine's masks, best first; the best one is shown."""
        if not masks:
            return NO_CANDIDATES
        order = sorted(range(len(masks)), key=lambda i: masks[i].area_px)
        return cls(tuple(masks[i] for i in order), order.index(0), chain, hierarchy)

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def shown(self) -> BoxMask | None:
        """The shown mask; None if there is none."""
        if self.other_mask is not None:
            return self.other_mask
        if self.chain_index is not None:
            return node_mask(self.hierarchy, int(self.chain[self.chain_index]))
        return self.masks[self.position] if self.masks else None

    @property
    def selection(self) -> Selection:
        """Which mask is shown; without a tree the mask itself, since masks that are added later change positions."""
        if self.hierarchy is None:
            return Selection(0, None, self.shown)
        return Selection(self.position, self.chain_index, self.other_mask)

    @property
    def rank(self) -> int:
        """The rank of the shown mask among `masks` by area, from 1; 0 if it is none of them."""
        return self.position + 1 if self.masks and self.chain_index is None and self.other_mask is None else 0

    def stepped(self, direction: int) -> Candidates:
        """Shows the next mask of `masks`, a larger one for 1 and a smaller one for -1; returns itself at the ends."""
        if self.rank:
            position = self.position + direction
            return replace(self, position=position) if 0 <= position < len(self) else self
        shown = self.shown
        for position in range(len(self))[::direction]:
            ratio = self.masks[position].area_px / shown.area_px
            if (ratio if direction > 0 else 1 / ratio) > _MIN_AREA_RATIO:
                return replace(self, position=position, chain_index=None, other_mask=None)
        return self

    def stepped_in_chain(self, steps: int) -> Candidates:
        """Shows another region of the chain, a larger one for positive steps and a smaller one for negative steps.

        If no region is shown, the steps are counted from the region whose area is nearest to that of the shown mask.
        """
        start = self.chain_index
        if start is None:
            start = nearest_area(self.hierarchy.area[self.chain], self.shown.area_px)
        return replace(self, chain_index=int(np.clip(start + steps, 0, len(self.chain) - 1)), other_mask=None)

    def at_granularity(self, granularity: float) -> Candidates:
        """Shows the region of the chain whose area is nearest to that of a granularity."""
        wanted_px = granularity_area(granularity, self.hierarchy.leaf_labels.size)
        return replace(self, chain_index=nearest_area(self.hierarchy.area[self.chain], wanted_px), other_mask=None)

    def with_other_mask(self, mask: BoxMask) -> Candidates:
        """Shows a mask that is not one of the candidates, such as one that was searched by its size."""
        return replace(self, chain_index=None, other_mask=mask)

    def with_selection(self, selection: Selection) -> Candidates:
        """Shows the mask of a `selection` of candidates for the same prompt."""
        if self.hierarchy is None:
            return self if selection.other_mask is None else self.still_showing(selection.other_mask)
        return replace(self, **selection._asdict())

    def still_showing(self, shown: BoxMask) -> Candidates:
        """Shows a mask of earlier candidates: the one of `masks` with its box and area, else the mask itself."""
        for position, mask in enumerate(self.masks):
            if mask.box_xyxy == shown.box_xyxy and mask.area_px == shown.area_px:
                return replace(self, position=position, chain_index=None, other_mask=None)
        return self.with_other_mask(shown)


NO_CANDIDATES = Candidates()
