"""Ratios against named rivals, each measured side by side in one run: ``python -m benchmarks``.

A row is a module with ``run(inputs) -> Row``. They are part of the repository, not of the installed package.
"""

ROWS = ('tree', 'ncut', 'conquer', 'generator', 'nms', 'workers', 'metric', 'head', 'sa1b_index', 'scaling')
"""Names of the rows, which are those of their modules."""
