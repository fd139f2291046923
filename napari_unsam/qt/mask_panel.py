"""The section for the current mask: granularity and commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QGridLayout, QLabel, QWidget

from napari_unsam.keys import KEYS
from napari_unsam.qt.controls import SLIDER_STEPS, key_button, move, slider

if TYPE_CHECKING:
    from napari_unsam.viewer.session import ViewerSession


class MaskPanel(QWidget):
    """The current mask.

    Args:
        session: What to control.
    """

    title = 'Mask'

    def __init__(self, session: ViewerSession) -> None:
        super().__init__()
        self._session = session
        self.coarser_button, self.finer_button = key_button('coarser'), key_button('finer')
        self.slider = slider('Granularity, from fine (left) to coarse (right); also Alt + mouse wheel')
        self.proposal_label = QLabel()
        self.proposal_label.setMinimumHeight(3 * self.proposal_label.fontMetrics().lineSpacing())
        self.keep_box = QCheckBox('Keep existing objects')
        self.keep_box.setChecked(session.keep_existing)
        self.keep_box.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.keep_box.setToolTip('Do not overwrite pixels of other objects')
        self.commit_button = key_button('commit')
        self._lay_out()
        self._connect()
        self.show_proposal()

    def show_proposal(self) -> None:
        """Shows the current mask."""
        controller = self._session.controller
        proposal, candidates = controller.proposal, controller.candidates
        for stepped, direction in ((self.coarser_button, 1), (self.finer_button, -1)):
            stepped.setEnabled(proposal is not None and candidates.stepped(direction).place != candidates.place)
        count = len(controller.prompts.pending) + (proposal is not None)
        self.commit_button.setEnabled(count > 0)
        label = f'Commit {count} objects' if count > 1 else KEYS['commit'].label
        self.commit_button.setText(KEYS['commit']._replace(label=label).button)
        self.slider.setEnabled(proposal is not None)
        if proposal is None:
            self.proposal_label.setText('No mask yet\n')
            return
        move(self.slider, proposal.granularity)
        place = (
            f'Mask {proposal.rank} of {proposal.count} (small to large)'
            if proposal.rank
            else 'Between the suggested masks'
        )
        self.proposal_label.setText(f'{place}\n{proposal.area_px:,} px, granularity {proposal.granularity:.2f}')

    def _lay_out(self) -> None:
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.coarser_button, 0, 0)
        grid.addWidget(self.finer_button, 0, 1)
        grid.addWidget(self.slider, 1, 0, 1, 2)
        grid.addWidget(self.proposal_label, 2, 0, 1, 2)
        grid.addWidget(self.keep_box, 3, 0, 1, 2)
        grid.addWidget(self.commit_button, 4, 0, 1, 2)

    def _connect(self) -> None:
        session, controller = self._session, self._session.controller
        self.coarser_button.clicked.connect(lambda: controller.coarser())
        self.finer_button.clicked.connect(lambda: controller.finer())
        self.slider.valueChanged.connect(lambda value: controller.set_granularity(value / SLIDER_STEPS))
        self.keep_box.toggled.connect(lambda checked: setattr(session, 'keep_existing', checked))
        self.commit_button.clicked.connect(lambda: session.commit())
        controller.proposal_changed.connect(self.show_proposal)
