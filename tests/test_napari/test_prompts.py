from napari_unsam._prompts import PointPrompt, Polarity, PromptHistory

HERE, THERE = PointPrompt((1.0, 2.0)), PointPrompt((3.0, 4.0), Polarity.NEGATIVE)


def test_undo_goes_back_one_version_at_a_time():
    history = PromptHistory()
    history.replace((HERE,))
    history.replace((HERE, THERE))
    assert history.undo()
    assert history.current == (HERE,)
    assert history.undo()
    assert history.current == ()
    assert not history.undo()


def test_a_change_that_changes_nothing_is_no_step_of_the_history():
    history = PromptHistory()
    assert history.replace((HERE,))
    assert not history.replace((HERE,))
    assert history.undo()
    assert not history.can_undo


def test_the_values_of_polarity_are_the_point_labels_of_the_models():
    assert (Polarity.POSITIVE.value, Polarity.NEGATIVE.value) == (1, 0)
    assert Polarity.POSITIVE.flipped().flipped() is Polarity.POSITIVE
