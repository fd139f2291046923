# Trains the region model on folders of images, without labels, on a CPU:
#   mim train unsam_mm configs/unsam_s.py --cfg-options data_root=/my/images
#   mim train unsam_mm configs/unsam_s.py --cfg-options data_root=[/my/photographs,/my/micrographs]
_base_ = [
    '_base_/models/unsam_regions.py',
    '_base_/datasets/region_tokens.py',
    '_base_/schedules/regions_cpu.py',
    '_base_/default_runtime.py',
]
# Without validation before training: an untrained model proposes no useful masks.
custom_hooks = [dict(type='UnSAMDataRootHook')]
default_hooks = dict(logger=dict(interval=50))
log_processor = dict(window_size=50)
