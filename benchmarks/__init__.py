"""Speed and memory relative to rivals, measured side by side in one run: ``python -m benchmarks``.

A row is a module with ``run(inputs) -> Row``. Benchmarks are part of the repository, not of the installed package.
"""

ROWS = ('tree', 'ncut', 'conquer', 'generator', 'nms', 'workers', 'metric', 'head', 'sa1b_index', 'scaling')
"""Names of the rows and of their modules."""
