"""The section for the current mask: granularity and commit."""

from __future__ import annotations

from qtpy.QtWidgets import QLabel

from napari_unsam.keys import KEYS
from napari_unsam.qt.controls import Panel, move


class MaskPanel(Panel):
    """The current mask."""

    title = 'Mask'

    def build(self) -> None:
        session = self._session
        self.coarser_button, self.finer_button = self.make_key_button('coarser'), self.make_key_button('finer')
        self.slider = self.make_slider(
            'Granularity, from fine (left) to coarse (right); also Alt + mouse wheel',
            session.controller.set_granularity,
        )
        self.proposal_label = QLabel()
        self.proposal_label.setMinimumHeight(3 * self.proposal_label.fontMetrics().lineSpacing())
        self.keep_box = self.make_check_box(
            'Keep existing objects',
            'Do not overwrite pixels of other objects',
            lambda is_checked: setattr(session, 'keep_existing', is_checked),
            session.keep_existing,
        )
        self.commit_button = self.make_key_button('commit')
        self.lay_out(
            [self.coarser_button, self.finer_button],
            [self.slider],
            [self.proposal_label],
            [self.keep_box],
            [self.commit_button],
        )
        self.subscribe(self.show_proposal, session.controller.proposal_changed)
        self.show_proposal()

    def show_proposal(self) -> None:
        """Shows the current mask."""
        controller = self._session.controller
        proposal, candidates = controller.proposal, controller.candidates
        for stepped, direction in ((self.coarser_button, 1), (self.finer_button, -1)):
            stepped.setEnabled(proposal is not None and candidates.stepped(direction) is not candidates)
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
