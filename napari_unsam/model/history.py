"""Undo and redo."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from psygnal import Signal

T = TypeVar('T')

MAX_ACTIONS = 500
"""Limit of the undo history in actions."""
MAX_BYTES = 256 * 2**20
"""Memory limit of the undo history in bytes."""


class Action(Protocol):
    """An action of the user.

    Attributes:
        name: As shown to the user, such as 'commit object 3'.
        nbytes: Memory that the action needs to be undone, in bytes; optional.
    """

    name: str

    def do(self) -> None:
        """Does the action, for the first time or again after `undo`."""

    def undo(self) -> None:
        """Restores the state before `do`."""


@dataclass(frozen=True, eq=False)
class Change(Generic[T]):
    """An action that replaces a value.

    Attributes:
        name: See `Action`.
        put: Sets the value.
        before: The old value.
        after: The new value.
        merge_key: Consecutive changes with the same key become one action, such as those of a slider; None never merges.
    """

    name: str
    put: Callable[[T], None]
    before: T
    after: T
    merge_key: Hashable = None

    @property
    def nbytes(self) -> int:
        """Memory of both values in bytes."""
        return _nbytes(self.before) + _nbytes(self.after)

    def do(self) -> None:
        """Sets the new value."""
        self.put(self.after)

    def undo(self) -> None:
        """Sets the old value."""
        self.put(self.before)


class ActionGroup:
    """Several actions as one.

    Args:
        name: See `Action`.
        actions: In the order in which they are done.
    """

    def __init__(self, name: str, actions: Sequence[Action]) -> None:
        self.name, self._actions = name, tuple(actions)

    @property
    def nbytes(self) -> int:
        """Memory of all actions in bytes."""
        return sum(map(_nbytes, self._actions))

    def do(self) -> None:
        """Does all actions; if one fails, the previous ones are undone."""
        done: list[Action] = []
        try:
            for action in self._actions:
                action.do()
                done.append(action)
        except Exception:
            for action in reversed(done):
                action.undo()
            raise

    def undo(self) -> None:
        """Undoes all actions, the last one first."""
        for action in reversed(self._actions):
            action.undo()


class ActionHistory:
    """Actions to undo and redo. Beyond the limits, the oldest ones are dropped, but never the last one.

    Args:
        max_actions: Maximum number of actions that can be undone.
        max_bytes: Maximum memory of these actions in bytes.

    Attributes:
        is_cut: True if actions were dropped.
        is_busy: True while an action is done or undone, until `changed` has been emitted; for other threads.
    """

    changed = Signal()

    def __init__(self, max_actions: int = MAX_ACTIONS, max_bytes: int = MAX_BYTES) -> None:
        self._max_actions, self._max_bytes = max_actions, max_bytes
        self._done: list[Action] = []
        self._undone: list[Action] = []
        self.is_cut = self.is_busy = False

    @property
    def undo_name(self) -> str | None:
        """The name of the action to undo; None if there is none."""
        return self._done[-1].name if self._done else None

    @property
    def redo_name(self) -> str | None:
        """The name of the action to redo; None if there is none."""
        return self._undone[-1].name if self._undone else None

    def do(self, action: Action) -> None:
        """Does an action and adds it, unless it raises; undone actions can no longer be redone."""
        self.is_busy = True
        try:
            action.do()
            self.add(action)
        finally:
            self.is_busy = False

    def add(self, action: Action) -> None:
        """Adds an action that is already done."""
        last = self._done[-1] if self._done else None
        merge_key = getattr(last, 'merge_key', None)
        if merge_key is not None and merge_key == getattr(action, 'merge_key', None):
            self._done[-1] = replace(last, after=action.after)
            if not self._undone:
                return  # views show the same as before
        else:
            self._done.append(action)
        self._undone.clear()
        self._cut()
        self.changed.emit()

    def undo(self) -> str | None:
        """Undoes the last action; returns its name, or None if there is none."""
        return self._move(self._done, self._undone, 'undo')

    def redo(self) -> str | None:
        """Redoes the last undone action; returns its name, or None if there is none."""
        return self._move(self._undone, self._done, 'do')

    def clear(self) -> None:
        """Drops all actions without undoing them."""
        self._done.clear()
        self._undone.clear()
        self.is_cut = False
        self.changed.emit()

    def _cut(self) -> None:
        """Drops the oldest actions beyond the limits."""
        kept, n_bytes = 0, 0
        for action in reversed(self._done):
            n_bytes += _nbytes(action)
            if kept and (kept == self._max_actions or n_bytes > self._max_bytes):
                break
            kept += 1
        if kept < len(self._done):
            self._done, self.is_cut = self._done[-kept:], True

    def _move(self, source: list[Action], target: list[Action], how: str) -> str | None:
        if not source:
            return None
        # Removed first: an action that fails must not block the actions before it.
        action = source.pop()
        self.is_busy = True
        try:
            getattr(action, how)()
            target.append(action)
        finally:
            self.changed.emit()
            self.is_busy = False
        return action.name


def _nbytes(value: object) -> int:
    return getattr(value, 'nbytes', 0)
