"""The region model: a small transformer over the region tokens of an image, which predicts masks for prompts.

A mask is a set of regions, so its boundary is accurate to the pixel. Memory and time do not depend on the size of the
image: the tokens take about a megabyte, and a prompt takes milliseconds.
"""

from __future__ import annotations

from unsam_mm.student.network import RegionNet
from unsam_mm.student.pairs import RegionInputs
from unsam_mm.student.prompts import RegionPrompts
from unsam_mm.student.proposals import propose, to_mask_set
from unsam_mm.student.tokenizer import RegionTokenizer
from unsam_mm.student.tokens import RegionTokens, TokenMasks
from unsam_mm.student.training import region_losses

__all__ = [
    'RegionInputs',
    'RegionNet',
    'RegionPrompts',
    'RegionTokenizer',
    'RegionTokens',
    'TokenMasks',
    'propose',
    'region_losses',
    'to_mask_set',
]
