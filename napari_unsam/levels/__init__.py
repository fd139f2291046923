"""The region tree of a plane for whole images: levels, similar regions, classes of parts and wholes, review.

Each module imports only from those above it; none knows Qt:

- `region_properties`: colour, contrast and shape of every region.
- `cuts`: any level of the tree as labels within milliseconds, and which regions count as objects.
- `disjoint`: the best set of regions that do not overlap, from one tree or several.
- `split_merge`: the region closest to an object, its parts, the larger region.
- `similarity`: regions similar to some examples.
- `review`: objects in order of certainty.
- `part_whole`: classes of objects, linked from part to whole.
- `candidate_table`: the candidate regions of one plane with their features.
- `preview`: the layers that preview chosen regions and mark the object that is reviewed.
- `selector`: levels, similar regions and classes in a viewer.
- `edits`: split, merge and review in a viewer.
"""
