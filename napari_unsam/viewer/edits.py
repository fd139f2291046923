"""Prompts after edits of their layers with napari's own tools.

Each edit is announced before and after; only "after" counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from napari_unsam.model.prompts import PointPrompt, Polarity, Prompts, ShapeKind, ShapePrompt

if TYPE_CHECKING:
    from napari.layers import Shapes

KINDS = {
    'rectangle': ShapeKind.BOX,
    'ellipse': ShapeKind.BOX,
    'polygon': ShapeKind.OUTLINE,
    'path': ShapeKind.SCRIBBLE,
    'line': ShapeKind.SCRIBBLE,
}


def after_points_event(event: Any, prompts: Prompts, polarity: Polarity, object_id: int) -> tuple[Prompts, str] | None:
    """The prompts after an edit of the points, and what was done; None if the event announces an edit to come.

    Args:
        event: Of the layer's data.
        prompts: Before the edit.
        polarity: Of points that were added.
        object_id: Of points that were added.
    """
    points, positions = list(prompts.points), [tuple(map(float, row)) for row in event.value]
    match str(event.action):
        case 'added':
            points += [PointPrompt(at, polarity, object_id) for at in positions[len(points) :]]
            name = 'click'
        case 'removed':
            removed = {index % len(points) for index in event.data_indices}
            points, name = [point for i, point in enumerate(points) if i not in removed], 'remove click'
        case 'changed':
            points = [replace(old, position=at) for at, old in zip(positions, points, strict=True)]
            name = 'move click'
        case _:
            return None
    return replace(prompts, points=tuple(points)), name


def after_shapes_event(
    event: Any, layer: Shapes, prompts: Prompts, polarity: Polarity, object_id: int
) -> tuple[Prompts, str] | None:
    """The prompts after an edit of the shapes, and what was done; None if the event announces an edit to come.

    Args:
        event: Of the layer's data.
        layer: Of the shapes.
        prompts: Before the edit.
        polarity: Of scribbles that were added.
        object_id: Of shapes that were added.
    """
    action = str(event.action)
    if action not in ('added', 'removed', 'changed'):
        return None
    drawn = [
        (KINDS.get(kind, ShapeKind.BOX), tuple(tuple(map(float, corner)) for corner in corners))
        for kind, corners in zip(layer.shape_type, layer.data, strict=True)
    ]
    shapes = list(prompts.shapes)
    if action == 'removed':
        removed = {index % len(shapes) for index in event.data_indices} if shapes else set()
        shapes = [shape for i, shape in enumerate(shapes) if i not in removed]
    # A drag of a corner may be announced as nothing but an addition, so all shapes are compared.
    for i, (kind, vertices) in enumerate(drawn):
        if i < len(shapes):
            shapes[i] = replace(shapes[i], vertices=vertices)
        else:
            says = polarity if kind is ShapeKind.SCRIBBLE else Polarity.POSITIVE
            shapes.append(ShapePrompt(kind, vertices, says, object_id))
    name = {'removed': 'remove shape', 'changed': 'move shape'}.get(
        action, shapes[-1].kind.value if shapes else 'shape'
    )
    return replace(prompts, shapes=tuple(shapes)), name
