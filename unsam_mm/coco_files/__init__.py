"""COCO files of any size: read and written piece by piece, masks in all their forms, images paired by name."""
