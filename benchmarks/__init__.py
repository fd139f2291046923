"""Speed and memory relative to rivals, measured on the same input in the same run: ``python -m benchmarks``.

A row of the table is a module with ``run(inputs) -> Row``. Benchmarks are part of the repository, not of the installed
package.
"""

ROWS = ('tree', 'ncut', 'conquer', 'generator', 'nms', 'workers', 'metric', 'head', 'sa1b_index', 'scaling')
"""Names of the rows and of their modules."""
