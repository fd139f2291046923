"""The promptable head: several masks for each prompt, with predicted overlaps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.utils import reduce_mean
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from unsam_mm.models.attention import mlp
from unsam_mm.models.criterion import named_by_layer
from unsam_mm.models.mask_ops import ImageSizes, PointSampling, full_size_masks, rles_of_masks
from unsam_mm.models.prompt_criterion import TokenPredictions, prompt_losses
from unsam_mm.models.prompt_decoder import DecodedTokens, PromptDecoder
from unsam_mm.models.prompt_details import DetailEncoder, PromptDetails, prepare_prompts
from unsam_mm.models.prompt_targets import TrainingPrompts, corrected, draw_prompts
from unsam_mm.models.unsam_head import check_mask_format

_METRIC_FIELDS = ('targets', 'clicks')
"""Fields of prompts that metrics need."""

_TRAIN_CFG = {
    'prompts_per_image': 60,
    'box_prob': 0.2,
    'granularity_prob': 0.2,
    'correction_prob': 0.25,
    'correction_rounds': 3,
    'earlier_mask_prob': 0.5,
}

_NOT_TRAINED = (
    'the weights of UnSAMPromptHead for several clicks, earlier masks and granularity (`details`) have not been '
    'trained, as in all released checkpoints: predictions for such prompts are arbitrary; train with '
    'train_cfg.correction_prob and granularity_prob above 0'
)


class ImageEmbedding(NamedTuple):
    """The embedding of B images, which is computed once for all prompts.

    Attributes:
        mask_feature: (B, C, H / 4, W / 4).
        values: (B, K, heads, D) attention values for each layer of the decoder.
        sizes_hw: Height and width of each level; the levels have K pixels in total.
    """

    mask_feature: Tensor
    values: list[Tensor]
    sizes_hw: list[tuple[int, int]]

    def image(self, index: int) -> ImageEmbedding:
        """The embedding of one image, as a batch of one."""
        here = slice(index, index + 1)
        return ImageEmbedding(self.mask_feature[here], [value[here] for value in self.values], self.sizes_hw)


class PromptPredictions(NamedTuple):
    """Predictions for P prompts, T masks each.

    Attributes:
        masks: (B, P, T, H / 4, W / 4) logits.
        overlaps: (B, P, T) predicted overlaps (Dice coefficients); approximately in [0, 1], not clipped.
        boxes: (B, P, T, 4) as centre x, y, width, height, relative to the padded image.
    """

    masks: Tensor
    overlaps: Tensor
    boxes: Tensor


@MODELS.register_module()
class UnSAMPromptHead(BaseModule):
    """Masks of several granularities for each prompt; the `mask_head` of an `UnSAM` detector.

    Source: the promptable model of "Segment Anything without Supervision" (NeurIPS 2024), a Semantic-SAM without
    labels. Matching and losses are those published, see `prompt_losses`. `embed` encodes images, `answer` predicts
    masks for prompts on an embedding, `predict` does both.

    By default, a click has the same type and size in prediction and in training, and prompts are independent. Training
    uses clicks and boxes; if a click has more target masks than there are tokens, the targets range from the smallest
    to the largest mask. With `release`, as in the released code, a click in prediction has the type of a box and 0.005
    of the image as its size, and the prompts of an image attend to each other. Training uses single clicks only, with
    random targets.

    A prompt may have several clicks, an earlier mask and a granularity; see `DetailEncoder`, whose weights are in
    `details`. Released checkpoints lack these weights: `details.trained` is then False, and `predict` warns about such
    prompts. Predictions for a single click or a single box do not depend on these weights.

    Args:
        pixel_decoder: Config of the pixel decoder, such as `UnSAMPixelDecoder`; None if the inputs are the outputs of a
            shared pixel decoder.
        decoder: Arguments of `PromptDecoder`.
        feat_channels: Width of the tokens and of the mask feature.
        num_tokens: Number of masks for each prompt.
        release: True to follow the released code, see above.
        train_cfg: `num_points`, `oversample_ratio` and `importance_sample_ratio` of the mask losses;
            `prompts_per_image` (60); and settings that `release` ignores, with these defaults: the probabilities that a
            prompt is a box (`box_prob`, 0.2), that it has the granularity of its mask (`granularity_prob`, 0.2), and
            that it is corrected by 1 to `correction_rounds` (3) further clicks at the largest errors
            (`correction_prob`, 0.25); and the probability that a corrected prompt also has the mask of its last
            prediction (`earlier_mask_prob`, 0.5).
        test_cfg: `mask_format` ('rle', the default, or 'bitmap').
        init_cfg: MMEngine's initialisation.

    Raises:
        UnSAMError: If `test_cfg.mask_format` is unknown.
    """

    def __init__(
        self,
        pixel_decoder: dict | None,
        decoder: dict | None = None,
        feat_channels: int = 256,
        num_tokens: int = 6,
        release: bool = False,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.mask_format = check_mask_format('UnSAMPromptHead', test_cfg or {})
        self.release = release
        self.train_cfg = ConfigDict(_TRAIN_CFG | (train_cfg or {}))
        self.point_sampling = PointSampling.from_config(self.train_cfg)
        self.pixel_decoder = nn.Identity() if pixel_decoder is None else MODELS.build(pixel_decoder)
        self.decoder = PromptDecoder(embed_dims=feat_channels, **(decoder or {}))
        self.prompt_embed = nn.Embedding(1, feat_channels)
        self.type_embed = nn.Embedding(2, feat_channels)
        self.mask_tokens = nn.Embedding(num_tokens, feat_channels)
        self.mask_mlp = mlp(feat_channels, feat_channels, feat_channels, num_layers=3)
        self.iou_mlp = mlp(feat_channels, feat_channels, 1, num_layers=3)
        self.details = DetailEncoder(feat_channels)

    def embed(self, x: Sequence[Tensor]) -> ImageEmbedding:
        """The embedding of a batch of images.

        Args:
            x: Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32.
        """
        mask_feature, memories = self.pixel_decoder(x)
        sizes_hw = [tuple(level.shape[2:]) for level in memories]
        return ImageEmbedding(mask_feature, self.decoder.values(memories), sizes_hw)

    def answer(
        self,
        embedding: ImageEmbedding,
        boxes: Tensor,
        types: Tensor,
        joint: bool | None = None,
        details: PromptDetails | None = None,
    ) -> PromptPredictions:
        """Predicts masks for prompts.

        Args:
            embedding: Embedding of the images.
            boxes: (B, P, 4) float as centre x, y, width, height, relative to the padded image; a click is a small box.
            types: (B, P) long, `BOX_TYPE` or `CLICK_TYPE`.
            joint: True if the prompts of one image attend to each other; by default the value of `release`.
            details: Further details of the prompts, if any.
        """
        joint = self.release if joint is None else joint
        decoded = self._decoded(embedding, boxes, types, joint, details)
        embeds, overlaps, boxes = self._predictions(decoded, len(decoded.states) - 1)
        return PromptPredictions(torch.einsum('bptc,bchw->bpthw', embeds, embedding.mask_feature), overlaps, boxes)

    def loss(self, x: Sequence[Tensor], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of every decoder layer for random prompts, by name; the prefix of the first layer is 'd0.'.

        Args:
            x: Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32.
            batch_data_samples: With `gt_instances`, whose `masks` have the size of the padded batch.
        """
        embedding = self.embed(x)
        drawn = [self._drawn(embedding.image(index), sample) for index, sample in enumerate(batch_data_samples)]
        pairs = embedding.mask_feature.new_tensor(float(sum(prompts.num_pairs for prompts in drawn)))
        n_pairs = reduce_mean(pairs).clamp(min=1)  # the mean over the processes
        total: dict[str, Tensor] = {}
        for index, prompts in enumerate(drawn):
            for name, value in self._image_losses(embedding.image(index), prompts, n_pairs).items():
                total[name] = total.get(name, 0) + value
        # DDP needs a gradient for all weights, even if no prompt has details.
        total['loss_mask'] = total['loss_mask'] + 0 * sum(weight.sum() for weight in self.details.parameters())
        return total

    def forward(self, x: Sequence[Tensor], batch_data_samples: SampleList) -> list[PromptPredictions]:
        """Raw predictions for the `prompts` of each image, as batches of one image; see `predict`."""
        embedding = self.embed(x)
        answers = []
        for index, sample in enumerate(batch_data_samples):
            boxes, types, details = prepare_prompts(
                sample.get('prompts', InstanceData()),
                ImageSizes.from_sample(sample),
                tuple(embedding.mask_feature.shape[2:]),
                self.release,
                embedding.mask_feature.device,
            )
            if details is not None and not self.details.trained:
                warnings.warn(_NOT_TRAINED, stacklevel=2)
            answers.append(self.answer(embedding.image(index), boxes[None], types[None], details=details))
        return answers

    def predict(self, x: Sequence[Tensor], batch_data_samples: SampleList, rescale: bool = True) -> list[InstanceData]:
        """Predicts masks for the prompts of each image.

        The predictions are also set as `pred_prompts` of the data samples, together with `targets` and `clicks` of the
        prompts, if any, for `UnSAMPromptIoUMetric`.

        Args:
            x: Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32.
            batch_data_samples: Each with `prompts`, an `InstanceData` of P objects, in pixels of the original image
                (H, W). Each object has a positive click, a box or an earlier mask, or several of them:

                - `points` (P, 2) or (P, K, 2) as x, y, with `point_labels` (P,) or (P, K): 1 positive (the default), 0
                  negative, -1 no click. The order of the clicks does not matter.
                - `bboxes` (P, 4) as x0, y0, x1, y1; NaN for no box.
                - `masks` (P, H, W) bool or P run-length encodings; empty for no mask.
                - `granularity` (P,) in [0, 1]: 1 is the whole image, 0.75 a tenth of its area; NaN if unknown.

                Their meta information contains `batch_input_shape`, `img_shape` and `ori_shape`.
            rescale: True for masks and boxes in pixels of the original image, False for pixels of the network's input.

        Returns:
            For each image, of length P: `scores` (P, T), the predicted overlaps; `bboxes` (P, T, 4) x0, y0, x1, y1 in
            pixels, from the box branch; `masks`, a list of T run-length encodings for each prompt, or a (P, T, H, W)
            bool tensor if `test_cfg.mask_format` is 'bitmap'.

        Raises:
            UnSAMError: If an image has no `prompts`, an object has no positive click, box or mask, or the shape or
                range of a field is wrong.
        """
        answers = self(x, batch_data_samples)
        results = [self._instances(*pair, rescale) for pair in zip(answers, batch_data_samples, strict=True)]
        for sample, instances in zip(batch_data_samples, results, strict=True):
            metric_fields = {name: sample.prompts[name] for name in _METRIC_FIELDS if name in sample.prompts}
            sample.pred_prompts = InstanceData(**instances, **metric_fields)
        return results

    def _drawn(self, image: ImageEmbedding, sample: DetDataSample) -> TrainingPrompts:
        """Random prompts on an image, some of them with simulated corrections."""
        settings, height, width = self.train_cfg, *sample.metainfo['img_shape'][:2]
        prompts = draw_prompts(
            sample.gt_instances.masks,
            settings.prompts_per_image,
            max_targets=self.mask_tokens.num_embeddings,
            box_prob=0.0 if self.release else settings.box_prob,
            random_targets=self.release,
            device=image.mask_feature.device,
            granularity_prob=0.0 if self.release else settings.granularity_prob,
            image_px=height * width,
        )
        if not self.release and prompts.chosen is not None:
            rows = (torch.rand(len(prompts.boxes)) < settings.correction_prob).nonzero()[:, 0]
            if len(rows) and settings.correction_rounds > 0:
                prompts = corrected(
                    prompts,
                    rows.to(image.mask_feature.device),
                    rounds=int(torch.randint(1, settings.correction_rounds + 1, ())),
                    earlier_mask_prob=settings.earlier_mask_prob,
                    feature_hw=tuple(image.mask_feature.shape[2:]),
                    predict_masks=partial(self._logits, image),
                )
        if prompts.details is not None:
            self.details.trained.fill_(True)
        return prompts

    def _logits(self, image: ImageEmbedding, boxes: Tensor, types: Tensor, details: PromptDetails | None) -> Tensor:
        """(P, T, h, w) mask logits."""
        return self.answer(image, boxes[None], types[None], details=details).masks[0]

    def _image_losses(self, image: ImageEmbedding, prompts: TrainingPrompts, n_pairs: Tensor) -> dict[str, Tensor]:
        decoded = self._decoded(image, prompts.boxes[None], prompts.types[None], False, prompts.details)
        predictions = [
            TokenPredictions(*(part[0] for part in self._predictions(decoded, layer)))
            for layer in range(len(decoded.states))
        ]
        losses = prompt_losses(predictions, image.mask_feature[0], prompts, self.point_sampling, n_pairs)
        return named_by_layer(losses)

    def _decoded(
        self, image: ImageEmbedding, boxes: Tensor, types: Tensor, joint: bool, details: PromptDetails | None
    ) -> DecodedTokens:
        """The tokens of the prompts after each layer; see `answer` for the arguments."""
        prompts = self.prompt_embed.weight[0] + self.type_embed(types)
        tokens = prompts[:, :, None] + self.mask_tokens.weight
        boxes = boxes[:, :, None].expand(-1, -1, tokens.shape[2], -1)
        extra = None
        if details is not None:
            extra = self.details(details, self.prompt_embed.weight[0], image.mask_feature)
            if details.granularity is not None:
                tokens = tokens + self.details.code(details.granularity)
        return self.decoder(tokens, boxes, image.values, image.sizes_hw, joint, extra)

    def _predictions(self, decoded: DecodedTokens, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mask embeddings (B, P, T, C), overlaps (B, P, T) and boxes (B, P, T, 4) after a layer."""
        # Normalised twice, as in the training of the released weights.
        states = self.decoder.norm(decoded.states[layer])
        boxes = self.decoder.refined(decoded.boxes[layer], states)
        return self.mask_mlp(states), self.iou_mlp(states)[..., 0], boxes

    def _instances(self, answer: PromptPredictions, sample: DetDataSample, rescale: bool) -> InstanceData:
        """See `predict`."""
        sizes = ImageSizes.from_sample(sample, rescale)
        chunks = full_size_masks(answer.masks[0].flatten(0, 1), sizes)
        prompts, tokens = answer.overlaps.shape[1:]
        if self.mask_format == 'bitmap':
            masks = torch.cat(list(chunks)).unflatten(0, (prompts, tokens))
        else:
            rles = [rle for chunk in chunks for rle in rles_of_masks(chunk)]
            masks = [rles[start : start + tokens] for start in range(0, len(rles), tokens)]
        height, width = (batch * output / image for output, image, batch in zip(*sizes, strict=True))
        boxes = bbox_cxcywh_to_xyxy(answer.boxes[0])
        boxes = boxes * torch.tensor([width, height, width, height], device=boxes.device)
        return InstanceData(scores=answer.overlaps[0], bboxes=boxes, masks=masks)
