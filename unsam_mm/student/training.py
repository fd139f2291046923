"""Training of the region model: random targets and prompts from pseudo-masks and tree nodes, and the losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.student.network import RegionNet
from unsam_mm.student.pairs import RegionInputs
from unsam_mm.student.prompts import RegionPrompts
from unsam_mm.student.tokens import TokenMasks

_NODE_WEIGHT = 0.3  # loss weight of tree nodes; that of pseudo-masks is 1
_SEED_ONLY, _CLICKS = 0.6, 0.85  # cumulative probabilities of the kinds of prompts: seeds, clicks, then boxes
_MAX_EXTRA_CLICKS = 3
_RANK_SCALE = 80.0  # the target score of the hundredth mask of a list is 0.3 times that of the first
_UNKNOWN_AFTER_CLICKS, _BOX_WITHOUT_CLICK, _WITH_EARLIER_MASK = 0.7, 0.7, 0.15  # probabilities


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of Q prompts.

    Attributes:
        seeds: (Q,) int64, a region that each mask contains.
        shares: (Q, L) float32 in [0, 1], fraction of each region that the mask covers.
        granularity: (Q,) float32.
        is_mask: (Q,) bool; True for pseudo-masks, False for tree nodes.
    """

    seeds: Tensor
    shares: Tensor
    granularity: Tensor
    is_mask: Tensor

    @property
    def weights(self) -> Tensor:
        """(Q,) float32 loss weights with a sum of 1."""
        weights = torch.where(self.is_mask, 1.0, _NODE_WEIGHT)
        return weights / weights.sum()


@dataclass(frozen=True, eq=False)
class TeacherMasks:
    """The pseudo-masks of an image on the device of the network.

    Attributes:
        shares: (M, L) float32 in [0, 1], fraction of each region that a mask covers.
        scores: (M,) float32.
        areas_px: (M,) float32.
    """

    shares: Tensor
    scores: Tensor
    areas_px: Tensor

    @classmethod
    def from_token_masks(cls, masks: TokenMasks, inputs: RegionInputs) -> TeacherMasks:
        """Teacher masks from stored masks.

        Raises:
            UnSAMError: If the number of regions differs from that of the inputs.
        """
        if masks.shares.shape[1] != len(inputs):
            raise UnSAMError(
                f'the masks have {masks.shares.shape[1]} regions, the inputs {len(inputs)}; load both from one file'
            )
        shares = torch.from_numpy(masks.shares).to(inputs.device).float() / 255
        areas = torch.from_numpy(masks.areas_px).to(inputs.device).float()
        return cls(shares, torch.from_numpy(masks.scores).to(inputs.device), areas)


def region_losses(
    net: RegionNet,
    inputs: RegionInputs,
    masks: TokenMasks,
    generator: torch.Generator | None = None,
    n_seeds: int = 32,
    targets_per_seed: int = 4,
) -> dict[str, Tensor]:
    """The losses on one image, for random prompts.

    Args:
        net: The network, on the device of the inputs.
        inputs: Inputs for the image, flipped or not.
        masks: Pseudo-masks of the image.
        generator: Random generator on the device of the inputs; the default generator of torch if None.
        n_seeds: Number of seed regions.
        targets_per_seed: Number of targets for each seed, with one prompt each. Half of them are pseudo-masks, unless no
            pseudo-mask contains the seed, and half are tree nodes.

    Returns:
        The terms `loss_mask`, `loss_dice` and `loss_score` of the loss, and the metric `iou`, the mean IoU with the
        pseudo-masks among the targets, without a gradient.

    Raises:
        UnSAMError: If the number of regions of the masks differs from that of the inputs.
    """
    teacher = TeacherMasks.from_token_masks(masks, inputs)
    targets = draw_targets(inputs, teacher, generator, n_seeds, targets_per_seed)
    prompts = draw_prompts(inputs, targets, generator)
    logits, scores = net.decode(inputs, net.encode(inputs), prompts)
    wanted, areas, weights = targets.shares, inputs.areas_px, targets.weights
    per_region = binary_cross_entropy_with_logits(logits, wanted, reduction='none') * (areas / areas.mean())
    found = logits.sigmoid()
    shared = 2 * (found * wanted * areas).sum(1)
    dice = 1 - (shared + 1) / (((found + wanted) * areas).sum(1) + 1)
    wanted_scores = _score_targets(inputs, teacher, targets.seeds, logits)
    # Minus the entropy of the target, so that the loss of a perfect prediction is 0.
    entropy = binary_cross_entropy(wanted_scores.clamp(1e-4, 1 - 1e-4), wanted_scores)
    return {
        'loss_mask': (per_region.mean(1) * weights).sum(),
        'loss_dice': 2 * (dice * weights).sum(),
        'loss_score': binary_cross_entropy_with_logits(scores, wanted_scores) - entropy,
        'iou': _mean_iou(logits.detach(), targets, areas),
    }


def draw_targets(
    inputs: RegionInputs, teacher: TeacherMasks, generator: torch.Generator | None, n_seeds: int, per_seed: int
) -> Targets:
    """Random seed regions, larger ones more often, and for each some pseudo-masks and tree nodes that contain it."""
    seeds = _pick(inputs.areas_px.sqrt()[None], n_seeds, generator)[0]
    n_masks = per_seed // 2
    contains = (teacher.shares[:, seeds] > 0.5).T
    has_mask = contains.any(1)
    chances = contains * teacher.scores
    chances = (chances / chances.amax(1, keepdim=True)).clamp(min=0.1) * contains if len(teacher.scores) else chances
    chosen = _pick(chances[has_mask], n_masks, generator).flatten()
    node_seeds = seeds.repeat_interleave(per_seed - n_masks)
    nodes, node_granularity = _draw_nodes(inputs, node_seeds, generator)
    mask_granularity = area_granularity(teacher.areas_px, inputs.areas_px.sum())[chosen]
    return Targets(
        seeds=torch.cat([seeds[has_mask].repeat_interleave(n_masks), node_seeds]),
        shares=torch.cat([teacher.shares[chosen], nodes]),
        granularity=torch.cat([mask_granularity, node_granularity]),
        is_mask=torch.arange(len(chosen) + len(node_seeds), device=seeds.device) < len(chosen),
    )


def _draw_nodes(inputs: RegionInputs, seeds: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """(Q, L) float32 masks and (Q,) granularities of a node on the path of each seed in a random tree.

    Half of the nodes are drawn with probabilities proportional to the number of regions that they add to the node below,
    half uniformly along the path.
    """
    rows = torch.arange(len(seeds), device=seeds.device)
    trees = _integers(inputs.n_trees, len(seeds), generator, seeds.device)
    distances = inputs.pairs[seeds, :, trees]
    steps = distances.sort(dim=1).values
    by_region = steps[rows, _integers(len(inputs), len(seeds), generator, seeds.device)]
    is_new = torch.cat([torch.ones_like(steps[:, :1], dtype=torch.bool), steps.diff(dim=1) > 0], dim=1)
    along_path = steps.gather(1, _pick(is_new.float(), 1, generator))[:, 0]
    granularity = torch.where(rows % 2 == 0, along_path, by_region)
    return (distances <= granularity[:, None] + 1e-5).to(distances), granularity


def draw_prompts(inputs: RegionInputs, targets: Targets, generator: torch.Generator | None) -> RegionPrompts:
    """A random prompt for each target: its seed and granularity, clicks, or a box; some with an earlier mask."""
    n_prompts, device = len(targets.seeds), targets.seeds.device

    def chance() -> Tensor:
        return torch.rand(n_prompts, generator=generator, device=device)

    kind = chance()
    by_seed = (kind < _SEED_ONLY) | ~targets.is_mask
    by_clicks, by_box = ~by_seed & (kind < _CLICKS), ~by_seed & (kind >= _CLICKS)
    inside = targets.shares > 0.5
    extra = _some(_pick(inside.float(), _MAX_EXTRA_CLICKS, generator), by_clicks, generator)
    positive = torch.cat([targets.seeds[:, None], extra], dim=1)
    negative = _draw_negatives(inputs, targets, positive, by_clicks, generator)
    boxes = _jittered_boxes(inputs, inside, generator)
    boxes = boxes.masked_fill(~by_box[:, None], torch.nan)
    positive = positive.masked_fill((by_box & (chance() < _BOX_WITHOUT_CLICK))[:, None], -1)
    is_unknown = by_box | (by_clicks & (chance() < _UNKNOWN_AFTER_CLICKS))
    previous = _earlier_masks(targets.shares, generator)
    previous = previous.masked_fill((by_seed | (chance() >= _WITH_EARLIER_MASK))[:, None], torch.nan)
    granularity = targets.granularity.masked_fill(is_unknown, torch.nan)
    return RegionPrompts.from_parts(inputs, positive, negative, boxes, previous, granularity)


def _draw_negatives(
    inputs: RegionInputs, targets: Targets, positive: Tensor, wanted: Tensor, generator: torch.Generator | None
) -> Tensor:
    """(Q, 3) regions outside the target, with higher probabilities for near ones, or -1."""
    near = inputs.pairs[..., : inputs.n_trees][positive.clamp(min=0)]
    near = near.masked_fill((positive < 0)[:, :, None, None], torch.inf).amin(1).mean(-1)
    chances = torch.exp(-4 * near) * (targets.shares < 0.3) * inputs.areas_px.sqrt()
    return _some(_pick(chances, _MAX_EXTRA_CLICKS, generator), wanted & (chances.sum(1) > 0), generator)


def _jittered_boxes(inputs: RegionInputs, inside: Tensor, generator: torch.Generator | None) -> Tensor:
    """(Q, 4) boxes in pixels around the regions of (Q, L) bool masks; each side is moved by up to 5 % of the box."""
    long_side = max(inputs.size_hw)
    low = [torch.where(inside, centre, torch.inf).amin(1) for centre in inputs.centres_yx.flip(1).unbind(1)]
    high = [torch.where(inside, centre, -torch.inf).amax(1) for centre in inputs.centres_yx.flip(1).unbind(1)]
    low, high = torch.stack(low, dim=1), torch.stack(high, dim=1)
    # The box of the centres is enlarged by half the side of a region of mean size.
    margin = (inside * inputs.areas_px).sum(1, keepdim=True).div(inside.sum(1, keepdim=True)).sqrt() / long_side / 2
    jitter = (torch.rand(len(inside), 2, 2, generator=generator, device=inside.device) - 0.5) * 0.1
    sides = (high - low)[:, None] * jitter
    return torch.cat([low - margin + sides[:, 0], high + margin + sides[:, 1]], dim=1) * long_side


def _earlier_masks(shares: Tensor, generator: torch.Generator | None) -> Tensor:
    """(Q, L) fractions of the targets with noise, as earlier masks; those of 5 % of the regions are inverted."""
    noise = torch.randn(shares.shape, generator=generator, device=shares.device)
    noisy = (shares + 0.3 * noise).clamp(0, 1)
    wrong = torch.rand(shares.shape, generator=generator, device=shares.device) < 0.05
    return torch.where(wrong, 1 - noisy, noisy)


@torch.no_grad()
def _score_targets(inputs: RegionInputs, teacher: TeacherMasks, seeds: Tensor, logits: Tensor) -> Tensor:
    """(Q, 2) target scores in [0, 1]: the largest product of the match with a pseudo-mask and a weight of that mask.

    The match is the IoU, rescaled from [0.5, 1] to [0, 1]. For the first score, among all masks, the weight falls with
    the rank of the pseudo-mask. For the second, for a click, only pseudo-masks that contain the seed count; large ones
    and those along the border of the image get lower weights.
    """
    n_masks = len(teacher.scores)
    if n_masks == 0:
        return logits.new_zeros(len(logits), 2)
    found = (logits > 0) * inputs.areas_px
    shared = found @ teacher.shares.T
    iou = shared / (found.sum(1, keepdim=True) + teacher.areas_px - shared + 1)
    good = (2 * iou - 1).clamp(min=0)  # an IoU below 0.5 is no match
    rank = torch.arange(n_masks, device=iou.device)
    in_list = (good * torch.exp(-rank / _RANK_SCALE)).amax(1)
    inside = teacher.shares > 0.5
    click_scores = teacher.scores / teacher.areas_px.sqrt() * torch.exp(-4 * (inside.to(iou) @ inputs.border_share))
    contains = inside[:, seeds].T.to(iou)
    click_scores = contains * click_scores
    click_scores = click_scores / (click_scores.amax(1, keepdim=True) + 1e-9)
    under_click = (good * (0.1 + 0.9 * click_scores) * contains).amax(1)
    return torch.stack([in_list, under_click], dim=1).clamp(max=1)  # rounding may exceed 1


def _mean_iou(logits: Tensor, targets: Targets, areas: Tensor) -> Tensor:
    """Scalar: mean IoU with the pseudo-masks among the targets; 0 if there are none."""
    found, wanted = (logits > 0)[targets.is_mask], (targets.shares > 0.5)[targets.is_mask]
    iou = ((found & wanted) * areas).sum(1) / (((found | wanted) * areas).sum(1) + 1e-6)
    return iou.sum() / max(len(iou), 1)


def _pick(chances: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """(Q, count) int64 columns, drawn with replacement by (Q, N) weights; uniformly in rows whose weights are all 0."""
    if chances.numel() == 0:
        return torch.zeros(len(chances), count, dtype=torch.long, device=chances.device)
    possible = torch.where(chances.sum(1, keepdim=True) > 0, chances, 1.0)
    return torch.multinomial(possible, count, replacement=True, generator=generator)


def _some(regions: Tensor, wanted: Tensor, generator: torch.Generator | None) -> Tensor:
    """(Q, K) a random number of the first regions of each row, then -1; only -1 in rows that are not wanted."""
    count = _integers(regions.shape[1] + 1, len(regions), generator, regions.device)
    kept = (torch.arange(regions.shape[1], device=regions.device) < count[:, None]) & wanted[:, None]
    return regions.masked_fill(~kept, -1)


def _integers(limit: int, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.randint(0, limit, (count,), generator=generator, device=device)
