from napari_unsam.model.prompts import PointPrompt, Polarity, Prompts, ShapeKind, ShapePrompt

HERE, THERE = PointPrompt((1.0, 2.0)), PointPrompt((3.0, 4.0), Polarity.NEGATIVE, object_id=2)
BOX = ShapePrompt(ShapeKind.BOX, ((0.0, 0.0), (4.0, 4.0)), object_id=2)


def test_the_values_of_polarity_are_the_point_labels_of_the_models():
    assert (Polarity.POSITIVE.value, Polarity.NEGATIVE.value) == (1, 0)
    assert Polarity.POSITIVE.flipped().flipped() is Polarity.POSITIVE


def test_prompts_are_true_if_there_is_one_of_any_kind():
    assert not Prompts(object_id=7)
    assert Prompts((HERE,))
    assert Prompts(shapes=(BOX,))


def test_prompts_can_be_taken_away_from_others():
    both = Prompts((HERE, THERE), (BOX,), object_id=2)
    assert both.without(Prompts((THERE,))) == Prompts((HERE,), (BOX,), object_id=2)
    assert both.filtered(lambda prompt: prompt.object_id == 2) == Prompts((THERE,), (BOX,), object_id=2)
