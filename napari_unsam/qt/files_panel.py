"""The section for the images of a folder; asks before unsaved objects are lost."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QLabel, QListWidget, QMessageBox

from napari_unsam.folders.results import ImageList, Results
from napari_unsam.folders.series import ImageSeries
from napari_unsam.qt.controls import Panel
from unsam_mm.errors import UnSAMError


class Unsaved(Enum):
    """What to do with changes that were not saved."""

    SAVE = 'save'
    DISCARD = 'discard'
    STAY = 'stay'


class FilesPanel(Panel):
    """Lists the images of a folder, marks those that are done, and opens them."""

    title = 'Files'

    def build(self) -> None:
        self.series: ImageSeries | None = None
        self.folder_button = self.make_button(
            'Open folder...', 'List the images of a folder and its subfolders', self._choose
        )
        self.elsewhere_box = self.make_check_box(
            'Save objects in another folder', 'By default they are saved next to the images'
        )
        self.list = QListWidget()
        self.list.setToolTip('✓ marks images whose objects are saved, ✗ those that cannot be read')
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.list.setMaximumHeight(8 * self.list.fontMetrics().lineSpacing())
        self.list.itemClicked.connect(lambda item: self.go(self.list.row(item)))
        self.previous_button = self.make_button('Previous', 'Open the previous image', lambda: self.step(-1))
        self.next_button = self.make_button('Next', 'Open the next image', lambda: self.step(1))
        self.save_button = self.make_button(
            'Save', 'Save the objects of this image: a label TIFF and a table', self.save
        )
        self.status_label = QLabel()
        self.lay_out(
            [self.folder_button, self.save_button],
            [self.elsewhere_box],
            [self.list],
            [self.previous_button, self.next_button],
            [self.status_label],
        )
        self._show()

    def close_session(self) -> None:
        """Leaves the session alone from now on; the image that is open stays."""
        super().close_session()
        self.series = None

    def open_folder(self, folder: str | Path, results: str | Path | None = None) -> None:
        """Lists the images of a folder and opens the first that is not done.

        Args:
            folder: See `ImageList.of`.
            results: Where objects are kept; by default beside the images.
        """
        try:
            images = ImageList.of(folder)
        except UnSAMError as error:
            self.show_problem(str(error))
            return
        if not self._may_leave(lambda: self.open_folder(folder, results)):
            return
        if self.series is not None:
            super().close_session()
            self.series.close()
        results = Results(images.root if results is None else results)
        self.series = ImageSeries(self._session, images, results)
        self.follow(self._show, self.series.changed)
        self.list.clear()
        self.list.addItems(images.names)
        self._show()
        self.series.open(self.series.start())

    def go(self, position: int) -> None:
        """Opens an image of the list, after a question if there are changes that were not saved."""
        series = self.series
        if series is None or not 0 <= position < len(series.images.names):
            return
        if position == series.position or self._may_leave(lambda: self.go(position)):
            series.open(position)
        else:
            self._show()  # the list had moved its mark already

    def step(self, by: int) -> None:
        """Opens the next image, or the one before, seen from the one that was asked for last."""
        if self.series is not None and self.series.asked is not None:
            self.go(self.series.asked + by)

    def save(self) -> None:
        """Saves the objects of the image that is open."""
        if self.series is not None:
            self.series.save()

    def ask_unsaved(self, name: str) -> Unsaved:
        """Asks what to do with changes that were not saved."""
        button_of = QMessageBox.StandardButton
        chosen = QMessageBox.question(
            self,
            'Unsaved objects',
            f'The objects of {name} have changed. Save them?',
            button_of.Save | button_of.Discard | button_of.Cancel,
            button_of.Save,
        )
        return {button_of.Save: Unsaved.SAVE, button_of.Discard: Unsaved.DISCARD}.get(chosen, Unsaved.STAY)

    def choose_folder(self, caption: str) -> Path | None:
        """Asks for a folder; None if cancelled."""
        path = QFileDialog.getExistingDirectory(self, caption)
        return Path(path) if path else None

    def _choose(self) -> None:
        folder = self.choose_folder('Folder of images')
        if folder is None:
            return
        results = None
        if self.elsewhere_box.isChecked():
            results = self.choose_folder('Folder for the objects')
            if results is None:
                return
        self.open_folder(folder, results)

    def _may_leave(self, then: Callable[[], None]) -> bool:
        """Whether the open image can be left now; if it is to be saved first, `then` is called after it."""
        series = self.series
        if series is None or not series.is_dirty:
            return True
        match self.ask_unsaved(series.name):
            case Unsaved.DISCARD:
                return True
            case Unsaved.SAVE:
                series.save(then)
        return False

    def _show(self) -> None:
        series = self.series
        position = None if series is None else series.position
        count = 0 if series is None else len(series.images.names)
        for row in range(count):
            mark = '✓ ' if series.is_done(row) else '✗ ' if series.is_broken(row) else ''
            self.list.item(row).setText(f'{mark}{series.images.names[row]}')
        asked = None if series is None else series.asked
        self.list.setCurrentRow(-1 if position is None else position)
        self.previous_button.setEnabled(bool(asked))
        self.next_button.setEnabled(asked is not None and asked < count - 1)
        self.save_button.setEnabled(position is not None)
        done = sum(series.is_done(row) for row in range(count)) if series is not None else 0
        self.status_label.setText(f'{done} of {count} done' if count else 'No folder open')
