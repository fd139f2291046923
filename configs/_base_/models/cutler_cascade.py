# CutLER's Cascade Mask R-CNN with the settings of its authors' Detectron2 config, for prediction only.
num_classes = 1  # class-agnostic
channels = 256

data_preprocessor = dict(
    type='DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],  # ImageNet's, RGB, with which the DINO ResNet-50 was trained
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=False,  # CutLERDivider gives RGB
    pad_size_divisor=32,  # the coarsest level of the backbone
)

roi_align = dict(type='RoIAlign', sampling_ratio=0, aligned=True)  # 0: adaptive; centres at halves
roi_levels = dict(out_channels=channels, featmap_strides=[4, 8, 16, 32], finest_scale=56)  # boxes of 224 px: stride 16

# Box deltas are divided by 10, 20 and 30 (5, 10 and 15 for sizes); MMDetection's own config rounds the last to 0.033.
box_deviations = [[1 / 10, 1 / 10, 1 / 5, 1 / 5], [1 / 20, 1 / 20, 1 / 10, 1 / 10], [1 / 30, 1 / 30, 1 / 15, 1 / 15]]

model = dict(
    type='CascadeRCNN',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='ResNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        style='pytorch',  # the 3 x 3 convolution has the stride (STRIDE_IN_1X1: False)
        norm_cfg=dict(type='BN'),  # the authors train with SyncBN, which is the same in prediction
        norm_eval=True,
        init_cfg=None,  # the checkpoint has all weights
    ),
    neck=dict(
        type='FPN',
        in_channels=[256, 512, 1024, 2048],
        out_channels=channels,
        num_outs=5,  # the fifth level is every second pixel of the fourth
        norm_cfg=dict(type='BN'),  # the authors normalise the pyramid too (FPN.NORM: SyncBN)
    ),
    rpn_head=dict(
        type='RPNHead',
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(
            type='AnchorGenerator',
            scales=[8],  # anchors of 32 px at stride 4 to 512 px at stride 64
            ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
            center_offset=0.0,  # centres at the top left corner of a cell
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
    ),
    roi_head=dict(
        type='UnSAMCutLERRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 1, 1],  # not used in prediction
        bbox_roi_extractor=dict(type='SingleRoIExtractor', roi_layer=dict(output_size=7, **roi_align), **roi_levels),
        bbox_head=[
            dict(
                type='Shared2FCBBoxHead',
                in_channels=channels,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=num_classes,
                reg_class_agnostic=True,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=deviations),
            )
            for deviations in box_deviations
        ],
        mask_roi_extractor=dict(type='SingleRoIExtractor', roi_layer=dict(output_size=14, **roi_align), **roi_levels),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=4,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=num_classes,
            class_agnostic=True,
        ),
    ),
    train_cfg=None,
    test_cfg=dict(
        rpn=dict(
            nms_pre=1000,  # of each level
            max_per_img=1000,
            nms=dict(type='nms', iou_threshold=0.65),  # the authors' value; Detectron2's default is 0.7
            min_bbox_size=0,
        ),
        rcnn=dict(
            score_thr=0.3,  # as in the paper; the released code has 0.1
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=100,
            mask_thr_binary=0.5,
        ),
    ),
)
