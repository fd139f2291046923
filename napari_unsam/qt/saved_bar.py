"""A bar that offers to restore the saved work of an earlier session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_unsam.model.text import counted
from napari_unsam.qt.controls import Panel, wrapping_label

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_unsam.io.autosave import Autosave
    from napari_unsam.io.records import SavedObjects, SavedSession


class SavedBar(Panel):
    """Visible while there is saved work to restore."""

    def build(self, autosave: Autosave) -> None:
        """Makes the controls.

        Args:
            autosave: Saves the work of the session, and finds that of earlier ones.
        """
        self._autosave = autosave
        self._saved: SavedSession | None = None
        self.label = wrapping_label()
        self.restore_button = self.make_button('Restore', 'Restore the objects and prompts', self._restore)
        self.discard_button = self.make_button('Discard', 'Delete the saved work; asks first', self._discard)
        self.lay_out([self.label], [self.restore_button, self.discard_button])
        self.subscribe(self.refresh, self._session.image_changed)
        self.refresh()
        autosave.watch(self._session)

    def refresh(self) -> None:
        """Shows the bar if there is saved work on the image, except objects that are still in the viewer."""
        image = self._session.image
        self._saved = saved = None if image is None else self._autosave.find(image)
        is_in_view = saved is not None and self._autosave.is_in_view(self._session, saved)
        if is_in_view and not saved.prompts:
            self._autosave.adopt(self._session, saved)
            self._saved = None
        self.setVisible(self._saved is not None)
        self.restore_button.show()
        if self._saved is not None:
            when = saved.saved_at.astimezone().strftime('%d %b %H:%M')
            name = f'"{image.name}", {when}'
            self.label.setText(f'Unsaved prompts found: {name}.' if is_in_view else f'Unsaved work found: {name}.')

    def _restore(self) -> None:
        saved, image = self._saved, self._session.image
        self.restore_button.hide()  # while the work is read
        self._session.controller.run(
            'Reading the saved work',
            lambda progress: saved.objects(),
            lambda read: self._restore_objects(saved, image, read),
            lambda reason: self.restore_button.show(),
            is_task=True,
        )

    def _restore_objects(self, saved: SavedSession, image: Image, read: SavedObjects) -> None:
        controller = self._session.controller
        if self._session.image is not image:
            controller.show_problem(f'The work on "{saved.image_name}" was not restored: another image was chosen.')
            return
        found = self._autosave.restore(self._session, saved, read)
        if controller.prompts_here and controller.plane is None:
            controller.embed()  # for the mask of the prompts
        text = f'{counted(found.objects, "object")} and {counted(found.prompts, "prompt")} restored.'
        if found.relabelled:
            text += f' {counted(found.relabelled, "object")} got new labels: the saved ones do not fit in uint32.'
        if found.damaged:
            text += f' {found.damaged} of the saved prompts and blocks of labels could not be read.'
            self.label.setText(f'{text} The saved work stays in {saved.folder} until you discard it.')
        else:
            self.hide()
        show = controller.show_problem if found.damaged else controller.show_info
        show(text)

    def _discard(self) -> None:
        if self.confirm('Discard saved work', f'Delete {self._saved.description}? This cannot be undone.'):
            self._autosave.discard(self._saved)
            self.refresh()
