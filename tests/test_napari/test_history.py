import pytest

from napari_unsam.model.history import ActionGroup, ActionHistory, Change


class Adding:
    """Adds a word to a list."""

    def __init__(self, words, word, fails=False):
        self.name, self._words, self._fails = word, words, fails

    def do(self):
        if self._fails:
            raise ValueError(self.name)
        self._words.append(self.name)

    def undo(self):
        self._words.remove(self.name)


@pytest.fixture
def words():
    return []


@pytest.fixture
def history():
    return ActionHistory()


def test_undo_and_redo_go_through_the_actions_one_by_one(history, words):
    for word in ('one', 'two'):
        history.do(Adding(words, word))
    assert history.undo_name == 'two'
    assert history.undo() == 'two'
    assert words == ['one']
    assert history.redo_name == 'two'
    assert history.redo() == 'two'
    assert words == ['one', 'two']
    assert history.redo_name is None


def test_there_is_nothing_to_undo_or_redo_at_first(history):
    assert (history.undo(), history.redo()) == (None, None)
    assert history.undo_name is None


def test_a_new_action_ends_what_could_be_done_again(history, words):
    history.do(Adding(words, 'one'))
    history.undo()
    history.do(Adding(words, 'two'))
    assert history.redo() is None
    assert words == ['two']


def test_an_action_that_fails_is_not_remembered(history, words):
    with pytest.raises(ValueError, match='one'):
        history.do(Adding(words, 'one', fails=True))
    assert history.undo_name is None


def test_several_actions_together_are_one(history, words):
    history.do(ActionGroup('both', [Adding(words, 'one'), Adding(words, 'two')]))
    assert words == ['one', 'two']
    assert history.undo() == 'both'
    assert words == []


def test_several_actions_are_all_taken_back_if_one_of_them_fails(history, words):
    with pytest.raises(ValueError, match='two'):
        history.do(ActionGroup('both', [Adding(words, 'one'), Adding(words, 'two', fails=True)]))
    assert words == []


def test_the_oldest_actions_go_first(words):
    history = ActionHistory(max_actions=2)
    for word in ('one', 'two', 'three'):
        history.do(Adding(words, word))
    assert [history.undo(), history.undo(), history.undo()] == ['three', 'two', None]


class Heavy(Adding):
    """Adds a word, and keeps some memory to take it back."""

    def __init__(self, words, word, nbytes):
        super().__init__(words, word)
        self.nbytes = nbytes


@pytest.mark.parametrize(
    ('sizes', 'kept'),
    [
        pytest.param([40, 40, 20], 3, id='as many as fit'),
        pytest.param([40, 40, 21], 2, id='the oldest goes first'),
        pytest.param([1, 1, 500], 1, id='the last one stays whatever it takes'),
        pytest.param([500, 1, 1], 2, id='large ones go with time'),
    ],
)
def test_actions_are_kept_as_far_as_their_memory_goes(words, sizes, kept):
    history = ActionHistory(max_bytes=100)
    for number, nbytes in enumerate(sizes):
        history.do(ActionGroup(str(number), [Heavy(words, str(number), nbytes)]))
    assert history.is_cut == (kept < len(sizes))
    undone = []
    while (name := history.undo()) is not None:
        undone.append(name)
    assert undone == ['2', '1', '0'][:kept]


def test_what_was_done_already_is_remembered_like_the_rest(history, words):
    history.do(Adding(words, 'one'))
    history.undo()
    words.append('stroke')
    history.add(Adding(words, 'stroke'))
    assert history.redo() is None
    history.undo()
    assert words == []


def test_listeners_hear_of_every_change(history, words):
    heard = []
    history.changed.connect(lambda: heard.append(history.undo_name))
    history.do(Adding(words, 'one'))
    history.undo()
    history.redo()
    history.clear()
    assert heard == ['one', None, 'one', None]


def move(put, before, after, key='slider'):
    """A change of a value by a slider."""
    return Change('move', put, before, after, merge_key=key)


def test_changes_with_the_same_key_are_undone_as_one(history, words):
    history.do(Adding(words, 'click'))
    values = []
    for before, after in ((0, 1), (1, 2), (2, 3)):
        history.do(move(values.append, before, after))
    history.undo()
    assert values == [1, 2, 3, 0]
    assert history.undo_name == 'click'
    history.redo()
    assert values[-1] == 3


def test_changes_with_other_keys_or_none_are_undone_one_by_one(history):
    for key in ('one slider', 'another', None, None):
        history.do(move(lambda value: None, 0, 1, key))
    assert [history.undo() for _ in range(5)] == ['move'] * 4 + [None]


def test_a_change_that_is_merged_ends_what_could_be_done_again(history, words):
    history.do(move(lambda value: None, 0, 1))
    history.do(Adding(words, 'click'))
    history.undo()
    history.do(move(lambda value: None, 1, 2))
    assert history.redo_name is None
