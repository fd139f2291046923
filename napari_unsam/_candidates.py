"""Which of the nested masks under a click are worth a key press."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unsam_mm.hierarchy import MaskHierarchy
from unsam_mm.prompting import click_scores, distinct_nodes

MAX_IOU = 0.9
"""Two masks that overlap more than this look the same on screen."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Nested masks, finest first, and the one that is shown.

    Attributes:
        nodes: (K,) int64 node numbers of a hierarchy, by increasing area.
        position: Index into `nodes` of the mask shown; 0 if there is none.
    """

    nodes: np.ndarray
    position: int = 0

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def node(self) -> int | None:
        """The node shown; None if there is none."""
        return int(self.nodes[self.position]) if len(self) else None

    def stepped(self, steps: int) -> Candidates:
        """The same masks with another one shown: coarser for positive steps, and no further than the ends."""
        return Candidates(self.nodes, int(np.clip(self.position + steps, 0, max(len(self) - 1, 0))))


NO_CANDIDATES = Candidates(np.empty(0, np.int64))


def distinct_candidates(
    hierarchy: MaskHierarchy, nodes: np.ndarray, shown: int | None = None, max_iou: float = MAX_IOU
) -> Candidates:
    """Thins a chain of nested nodes to those that look different, and picks the one to show.

    A mask that the user has stepped to stays as long as it fits the prompts.

    Args:
        hierarchy: The tree that the nodes belong to.
        nodes: (K,) nested nodes in any order.
        shown: The node on screen so far, if any.
        max_iou: The overlap above which two masks look the same, in (0, 1].

    Returns:
        The kept nodes, finest first; shown is `shown` if it is among `nodes`, else the one with the best score, the
        whole image being shown only where there is nothing else.
    """
    nodes = np.asarray(nodes, np.int64)
    scores = click_scores(hierarchy)
    kept = distinct_nodes(
        hierarchy, nodes, scores, max_iou, keep=shown if shown is not None and shown in nodes else None
    )
    if len(kept) == 0:
        return NO_CANDIDATES
    by_area = kept[np.argsort(hierarchy.area[kept], kind='stable')]
    return Candidates(by_area, int(np.flatnonzero(by_area == kept[0])[0]))
