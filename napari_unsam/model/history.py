"""Undo and redo of everything a user does, in one list."""

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
    """An action; `do` is called again after an `undo`.

    May have a method ``joined(later) -> Action | None``: itself and what was done right after it as one action, if they are
    one for the user.

    Attributes:
        name: What the user did, as a button shows it: 'commit object 3'.
        nbytes: Bytes of memory that it keeps to be undone; an action without this attribute keeps next to nothing.
    """

    name: str

    def do(self) -> None:
        """Does it."""

    def undo(self) -> None:
        """Puts everything back as it was before `do`."""


@dataclass(frozen=True, eq=False)
class Change(Generic[T]):
    """A value that is replaced.

    Attributes:
        name: What the user did.
        put: Sets the value.
        before: The former value.
        after: The new value.
        joins: Changes in a row that have this in common are one action: a slider makes dozens. None joins with no other.
    """

    name: str
    put: Callable[[T], None]
    before: T
    after: T
    joins: Hashable = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory of both values."""
        return _nbytes(self.before) + _nbytes(self.after)

    def do(self) -> None:
        """Sets the new value."""
        self.put(self.after)

    def undo(self) -> None:
        """Sets the former value."""
        self.put(self.before)

    def joined(self, later: Action) -> Change[T] | None:
        """This and a later change as one."""
        is_one = self.joins is not None and self.joins == getattr(later, 'joins', None)
        return replace(self, after=later.after) if is_one else None


class ActionGroup:
    """Several actions that are undone together.

    Args:
        name: What the user did.
        actions: In the order in which they are done.
    """

    def __init__(self, name: str, actions: Sequence[Action]) -> None:
        self.name, self._actions = name, tuple(actions)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that they keep."""
        return sum(map(_nbytes, self._actions))

    def do(self) -> None:
        """Does all of them; if one fails, the ones before it are undone."""
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
        """Undoes them, the last one first."""
        for action in reversed(self._actions):
            action.undo()


class ActionHistory:
    """Actions to undo and redo. The oldest ones are dropped, but never the last one.

    Args:
        max_actions: How many actions are kept.
        max_bytes: Memory limit of the actions that are kept.

    Attributes:
        is_cut: Whether an action was forgotten, so that not everything can be undone.
        is_busy: Whether something is being done or undone; until `changed` was emitted, for other threads.
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
        """Does an action and keeps it, unless it raises; undone actions can no longer be redone."""
        self.is_busy = True
        try:
            action.do()
            self.add(action)
        finally:
            self.is_busy = False

    def add(self, action: Action) -> None:
        """Keeps an action that is done already."""
        last = self._done[-1] if self._done else None
        joined = last.joined(action) if hasattr(last, 'joined') else None
        if joined is not None:
            self._done[-1] = joined
            if not self._undone:
                return  # nothing that a view shows has changed
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
        """Forgets everything; nothing is undone."""
        self._done.clear()
        self._undone.clear()
        self.is_cut = False
        self.changed.emit()

    def _cut(self) -> None:
        """Forgets the oldest actions that are too many, or keep too much memory."""
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
        # Taken out first: an action that fails half-way must not stand in the way of those before it.
        action = source.pop()
        self.is_busy = True
        try:
            getattr(action, how)()
            target.append(action)
        finally:
            self.changed.emit()
            self.is_busy = False
        return action.name


def _nbytes(kept: object) -> int:
    return getattr(kept, 'nbytes', 0)
