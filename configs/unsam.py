# Trains on a folder of images, without labels, on a CPU:
#   mim train unsam_mm configs/unsam.py --cfg-options data_root=/my/images
_base_ = [
    '_base_/models/unsam_dinov2s.py',
    '_base_/datasets/image_folder.py',
    '_base_/schedules/small_cpu.py',
    '_base_/default_runtime.py',
]
