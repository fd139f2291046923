"""Objects of whole planes from their region trees: levels, similar regions, classes of parts and wholes, review.

Each module imports only from those above it; none imports Qt:

- `region_properties`: colour, contrast and shape of every region.
- `disjoint`: the best set of regions that do not overlap, from one tree or several.
- `cuts`: the levels of a tree, drawn within milliseconds, and which regions count as objects.
- `split_merge`: the region closest to an object, its parts, the larger region.
- `similarity`: regions similar to some examples.
- `review`: objects in order of certainty.
- `part_whole`: classes of objects, linked from part to whole.
- `candidate_table`: the candidate regions of one plane with their properties.
- `preview`: the layers that show the chosen regions and the reviewed object.
- `selector`: levels, similar regions and classes in a viewer.
- `edits`: split, merge and review in a viewer.
"""
