"""The way back to the GUI's thread."""

import threading

from napari_unsam.qt.gui_thread import gui_caller, in_gui_thread


def test_calls_from_another_thread_are_all_made_in_that_of_the_gui_in_their_order(qapp, qtbot):
    gui_caller()
    made = []

    def send():
        for number in range(2000):
            in_gui_thread(lambda number=number: made.append((number, threading.current_thread())))

    sender = threading.Thread(target=send)
    sender.start()
    qtbot.waitUntil(lambda: len(made) == 2000, timeout=20_000)
    sender.join()
    assert made == [(number, threading.main_thread()) for number in range(2000)]


def test_a_call_in_the_thread_of_the_gui_is_made_at_once(qapp):
    made = []
    in_gui_thread(lambda: made.append(threading.current_thread()))
    assert made == [threading.main_thread()]
