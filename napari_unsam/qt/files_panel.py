"""The section for the images of a folder; the user is asked before unsaved objects are lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QLabel, QListWidget, QMessageBox

from napari_unsam.folders.results import ImageList, Results
from napari_unsam.folders.series import ImageSeries
from napari_unsam.qt.controls import Panel
from unsam_mm.errors import UnSAMError

Answer = QMessageBox.StandardButton


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
        """Disconnects from the session; the open image stays."""
        super().close_session()
        self.series = None

    def open_folder(self, folder: str | Path, results: str | Path | None = None) -> None:
        """Lists the images of a folder and opens the first that is not done.

        Args:
            folder: See `ImageList.of`.
            results: Folder of the objects; by default that of the images.
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
        """Opens the image at a position of the list; asks first if there are unsaved changes."""
        series = self.series
        if series is None or not 0 <= position < len(series.images.names):
            return
        if position == series.position or self._may_leave(lambda: self.go(position)):
            series.open(position)
        else:
            self._show()  # the list has selected the other row already

    def step(self, by: int) -> None:
        """Opens the image `by` positions after the one that was requested last; -1 is the previous image."""
        if self.series is not None and self.series.requested is not None:
            self.go(self.series.requested + by)

    def save(self) -> None:
        """Saves the objects of the open image."""
        if self.series is not None:
            self.series.save()

    def ask_unsaved(self, name: str) -> Answer:
        """Asks whether to save or discard unsaved changes, or to stay."""
        return QMessageBox.question(
            self,
            'Unsaved objects',
            f'The objects of {name} have changed. Save them?',
            Answer.Save | Answer.Discard | Answer.Cancel,
            Answer.Save,
        )

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
        """True if the open image can be left now. If the user saves it first, `then` is called after the save."""
        series = self.series
        if series is None or not series.is_dirty:
            return True
        match self.ask_unsaved(series.name):
            case Answer.Discard:
                return True
            case Answer.Save:
                series.save(then)
        return False

    def _show(self) -> None:
        series = self.series
        names = () if series is None else series.images.names
        position, requested = (None, None) if series is None else (series.position, series.requested)
        n_done = 0
        for row, name in enumerate(names):
            mark = '✓ ' if series.is_done(row) else '✗ ' if series.is_broken(row) else ''
            self.list.item(row).setText(f'{mark}{name}')
            n_done += series.is_done(row)
        self.list.setCurrentRow(-1 if position is None else position)
        self.previous_button.setEnabled(bool(requested))
        self.next_button.setEnabled(requested is not None and requested < len(names) - 1)
        self.save_button.setEnabled(position is not None)
        self.status_label.setText(f'{n_done} of {len(names)} done' if names else 'No folder open')
