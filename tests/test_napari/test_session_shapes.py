"""Boxes, outlines and scribbles drawn with napari's tools."""

import numpy as np

from napari_unsam.model.prompts import Polarity, ShapeKind
from napari_unsam.viewer.layers import SHAPES_NAME
from tests.test_napari.stand_ins import ON_CUP, is_problem, world


def layer(viewer, session):
    """The layer of the boxes, outlines and scribbles."""
    session.make_shapes_layer()
    return viewer.layers[SHAPES_NAME]


def drawn(row, column, height, width):
    return np.array(
        [[row, column], [row, column + width], [row + height, column + width], [row + height, column]], float
    )


def test_a_box_drawn_with_naparis_tool_is_one_prompt_and_is_answered(on_coffee, viewer, settle):
    heard = []
    on_coffee.controller.prompts_changed.connect(lambda: heard.append(len(on_coffee.controller.prompts.shapes)))
    layer(viewer, on_coffee).add_rectangles(drawn(60, 180, 200, 250))
    settle(on_coffee.controller)
    assert heard == [1]
    assert on_coffee.controller.prompts.shapes[0].kind is ShapeKind.BOX
    assert on_coffee.controller.proposal is not None
    on_coffee.controller.undo()
    assert len(layer(viewer, on_coffee).data) == 0


def test_a_scribble_takes_the_polarity_and_an_outline_is_always_positive(on_coffee, viewer, settle):
    on_coffee.controller.toggle_polarity()
    layer(viewer, on_coffee).add_paths(np.array([[100.0, 250], [110, 300], [150, 320]]))
    layer(viewer, on_coffee).add_polygons(drawn(60, 180, 200, 250))
    settle(on_coffee.controller)
    shapes = on_coffee.controller.prompts.shapes
    assert [(shape.kind, shape.polarity) for shape in shapes] == [
        (ShapeKind.SCRIBBLE, Polarity.NEGATIVE),
        (ShapeKind.OUTLINE, Polarity.POSITIVE),
    ]
    assert len(np.unique(layer(viewer, on_coffee).edge_color, axis=0)) == 2


def test_shapes_removed_or_changed_with_naparis_tools_are_followed(on_coffee, viewer, settle):
    shapes = layer(viewer, on_coffee)
    shapes.add_rectangles([drawn(60, 180, 200, 250), drawn(10, 10, 40, 40)])
    shapes.selected_data = {0}
    shapes.remove_selected()
    settle(on_coffee.controller)
    assert [shape.vertices[0] for shape in on_coffee.controller.prompts.shapes] == [(10.0, 10.0)]
    assert on_coffee.history.undo_name == 'remove shape'
    on_coffee.controller.undo()
    settle(on_coffee.controller)
    assert len(shapes.data) == 2


def test_a_shape_without_a_pixel_is_taken_away_again_and_said(on_coffee, viewer):
    layer(viewer, on_coffee).add_rectangles(drawn(60, 180, 0, 0))
    assert len(layer(viewer, on_coffee).data) == 0
    assert is_problem(on_coffee, 'draw it larger')


def test_a_tool_is_put_down_with_its_layer(on_coffee, viewer):
    taken = []
    on_coffee.tool_changed.connect(taken.append)
    on_coffee.draw(ShapeKind.BOX)
    viewer.layers.selection.active = on_coffee.image
    assert on_coffee.tool is None
    on_coffee.draw(ShapeKind.BOX)
    assert taken == [ShapeKind.BOX, None, ShapeKind.BOX]


def test_a_tool_is_in_the_hand_until_it_is_put_down(on_coffee, viewer, mouse):
    taken = []
    on_coffee.tool_changed.connect(taken.append)
    on_coffee.draw(ShapeKind.BOX)
    assert str(layer(viewer, on_coffee).mode) == 'add_rectangle'
    mouse(world(on_coffee, ON_CUP))
    assert not on_coffee.controller.prompts.points, 'the mouse draws, it does not click'
    assert on_coffee.tool is ShapeKind.BOX
    on_coffee.draw(None)
    mouse(world(on_coffee, ON_CUP))
    assert len(on_coffee.controller.prompts.points) == 1
    assert (taken[0], taken[-1], on_coffee.tool) == (ShapeKind.BOX, None, None)


def test_a_tool_without_an_image_is_harmless_and_said(session):
    session.draw(ShapeKind.BOX)
    assert is_problem(session, 'Choose an image')
    assert session.tool is None
