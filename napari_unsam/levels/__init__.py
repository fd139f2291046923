"""What the region tree of a plane can do for a whole image: levels, parts and wholes, likeness, review.

Each module imports only from those above it; none knows Qt:

- `region_properties`: what every region looks like: colour, contrast, shape.
- `cuts`: any level of the tree as labels within milliseconds, and which regions count as objects.
- `best`: the best set of regions that do not overlap, from one tree or several.
- `split_merge`: an object as a region of the tree, its parts, and what it is a part of.
- `alike`: all regions like some examples.
- `review`: objects in order of doubt.
- `part_whole`: layers whose objects know what they are parts of.
- `sheet`: all that is known of one plane in one place.
- `preview`: the layer that shows what is chosen.
- `work`: choosing, accepting, likeness and linked layers at work in a viewer.
- `edits`: splitting, merging and review at work in a viewer.
"""
