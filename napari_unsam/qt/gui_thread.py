"""Calls from the inference thread into the GUI thread, with PyQt6 and PySide6."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from qtpy.QtCore import QCoreApplication, QObject, Signal, Slot


def in_gui_thread(call: Callable[[], None]) -> None:
    """Runs a function in the GUI thread: at once if called in this thread, else soon."""
    gui_caller().called.emit(call)


@cache
def gui_caller() -> GuiCaller:
    """The object that runs functions in the GUI thread. The first call must be made in the GUI thread.

    There is one object for all calls, since PySide6 may crash when an object made in the inference thread is destroyed.
    """
    made = GuiCaller()
    made.moveToThread(QCoreApplication.instance().thread())
    return made


class GuiCaller(QObject):
    """Runs functions in the thread that it belongs to; `called` may be emitted, with a function, in any thread."""

    called = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.called.connect(self._run)

    @Slot(object)
    def _run(self, call: Callable[[], None]) -> None:
        call()
