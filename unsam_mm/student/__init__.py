"""The region model: a small transformer over a few hundred regions of an image that answers prompts with sets of them.

A mask is a set of regions, so it is exact to the pixel, and no layer ever sees pixels: an image of any size is
read from a file of a megabyte and answered in milliseconds.
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
