"""Objects leave the viewer here: measured, and written in the formats that other programs read.

- `objects`: labelled pixels with their table and their place in the world; walks arrays of any size piece by piece.
- `measurements`: one row of numbers an object.
- `outlines`: the pixel edges of a mask as polygons.
- `coco`, `geojson`, `images`: the formats.
- `formats`: all of them by name, and reading back.

Nothing here needs Qt or napari, so that it serves jobs without a screen too.
"""
