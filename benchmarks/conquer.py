"""The conquer step on one tree and run lengths against a direct implementation of the paper; see `plain_published`."""

from __future__ import annotations

from benchmarks.inputs import Inputs
from benchmarks.timing import Comparison, Cost, Row, in_new_process, one_thread


def run(inputs: Inputs, n_objects: int = 20, n_plain: int = 3, height: int = 1500) -> Row:
    """Compares both in a separate process, whose memory contains no data of other rows.

    Args:
        inputs: Unused.
        n_objects: Number of objects in the image.
        n_plain: Number of objects that the direct implementation processes.
        height: Height of the image in pixels; the width is 1.5 times as large.
    """
    with one_thread():
        sizes = ('--objects', n_objects, '--plain', n_plain, '--height', height)
        found = in_new_process('plain_published', '--json', *sizes)
    rows, columns = found['size_hw']
    checked = (
        f'{rows} x {columns} px, {found["n_plain"]} of {found["n_objects"]} objects: '
        f'{found["same"]} of {found["plain_masks"]} masks equal in every pixel'
    )
    if found['same'] < found['plain_masks']:
        checked += f', the others but for {found["differing_px"]}'
    ours, plain = Cost(**found['ours']), Cost(**found['plain'])
    note = f'all {found["n_objects"]} objects: {found["all_masks"]} parts in {found["all_s"]:.2f} s; our memory is that of all'
    return Row(
        'conquer', [Comparison('the paper, implemented directly', ours, plain, checked, found['agree'])], [note], found
    )
