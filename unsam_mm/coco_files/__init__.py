"""COCO files of any size: streaming reader and writer, mask formats, and matching of images by name."""
