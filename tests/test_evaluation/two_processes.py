"""One script as one process, then as two that work together through `torch.distributed`."""

import json
import os
import socket
from pathlib import Path

from tests import warm_python

FIRST_LINES = """
import json, sys
import numpy as np
import torch.distributed
from mmengine.dataset import DefaultSampler
from skimage import data, segmentation

if sys.argv[2] == 'two':
    torch.distributed.init_process_group('gloo')
"""

LAST_LINES = """
numbers = list(DefaultSampler(range(5), shuffle=False))
assert len(numbers) == (3 if sys.argv[2] == 'two' else 5)
for number in numbers[::-1]:  # the image that pads comes first
    metric.process(None, [scene(number)])
metrics = metric.evaluate(5)
if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
    with open(sys.argv[1] + '.json', 'w') as file:
        json.dump(metrics, file)
"""


def metrics_of_one_and_of_two(middle_lines: str, folder: Path) -> tuple[dict, dict]:
    """What one process and what two found on the same five images.

    Args:
        middle_lines: Python that makes ``metric`` and ``scene(number)``, a data sample. ``sys.argv[1]`` is where the run
            may write: ``folder/one`` or ``folder/two`` and whatever ending.
    """
    script = folder / 'script.py'
    script.write_text(FIRST_LINES + middle_lines + LAST_LINES)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shared = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    environment = os.environ | {'PYTHONPATH': str(warm_python.ROOT)}
    processes = [warm_python.start(script, folder / 'one', 'one', env=environment)]
    for rank in '01':
        of_rank = environment | shared | {'RANK': rank, 'LOCAL_RANK': rank}
        processes.append(warm_python.start(script, folder / 'two', 'two', env=of_rank))
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    one, two = (json.loads((folder / f'{name}.json').read_text()) for name in ('one', 'two'))
    return one, two
