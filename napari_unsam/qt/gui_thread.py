"""Calls from the inference thread into the GUI thread, with PyQt6 and PySide6."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from qtpy.QtCore import QCoreApplication, QObject, Signal, Slot


def in_gui_thread(call: Callable[[], None]) -> None:
    """Runs a function in the thread of the GUI, soon if called from another thread, else at once."""
    courier().sent.emit(call)


@cache
def courier() -> Courier:
    """The object that runs functions in the GUI thread; call this there once, before other threads do.

    One object for all calls: one made in the inference thread for each is at times destroyed while that still holds it, which
    ends the process with PySide6.
    """
    made = Courier()
    made.moveToThread(QCoreApplication.instance().thread())
    return made


class Courier(QObject):
    """Runs in its own thread what is sent from any."""

    sent = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.sent.connect(self._run)

    @Slot(object)
    def _run(self, call: Callable[[], None]) -> None:
        call()
