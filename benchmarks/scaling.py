"""How time and memory of the default generator grow with the size of the image.

Each size is processed in a separate process, so that its peak memory can be measured. One photograph is resized to
every size; a photograph taken at 16 megapixels would have more detail and noise.

    python -m benchmarks.scaling 1.0      # one size in megapixels; prints the figures as JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.inputs import Inputs, photograph, resampled
from benchmarks.timing import Comparison, Cost, Row, in_new_process, one_thread, peak_memory

_VIT = 'finding patch features'
_MEGAPIXELS = (0.15, 1.0, 4.0, 16.0)
_PAGE = 4096  # bytes, the smallest peak that is reported: a tiny image may fit into memory that the model has freed


def run(inputs: Inputs, megapixels: Sequence[float] = _MEGAPIXELS) -> Row:
    """Measures every size once.

    Args:
        inputs: Unused.
        megapixels: At least two increasing sizes. The largest is compared with the third largest, or of two sizes with
            the first.
    """
    with one_thread():
        sizes = [in_new_process('scaling', size) for size in megapixels]
    pixels = np.array([size['pixels'] for size in sizes])
    small, large = sizes[max(len(sizes) - 3, 0)], sizes[-1]
    factor = large['pixels'] / small['pixels']
    exponents = {
        name: float(np.polyfit(np.log(pixels), np.log([size[name] for size in sizes]), 1)[0])
        for name in ('rest_cpu_s', 'vit_cpu_s', 'peak_mb')
    }
    grown = Cost(factor * small['rest_cpu_s'], factor * small['rest_wall_s'], factor * small['peak_mb'])
    comparison = Comparison(
        f'growth in proportion, from {small["pixels"] / 1e6:.3g} to {large["pixels"] / 1e6:.3g} Mpx',
        Cost(large['rest_cpu_s'], large['rest_wall_s'], large['peak_mb']),
        grown,
        'all but the ViT; memory beyond that of the loaded model',
    )
    notes = [
        f'{size["pixels"] / 1e6:.3g} Mpx: ViT {size["vit_cpu_s"]:.2f} s, rest {size["rest_cpu_s"]:.2f} s CPU; '
        f'{size["peak_mb"]:.0f} MB beyond the {size["model_mb"]:.0f} MB of the loaded model; {size["masks"]} masks; '
        + ', '.join(f'{stage} {seconds:.2f} s' for stage, seconds in size['stages_s'].items())
        for size in sizes
    ]
    notes.append(
        'fitted exponents over the pixels: '
        f'time without the ViT {exponents["rest_cpu_s"]:.2f}, of the ViT {exponents["vit_cpu_s"]:.2f}, '
        f'memory {exponents["peak_mb"]:.2f}'
    )
    return Row('scaling', [comparison], notes, {'sizes': sizes, 'exponents': exponents})


def measure(megapixels: float) -> dict:
    """Figures of one size, in this process."""
    from unsam_mm import PseudoMaskGenerator

    generator = PseudoMaskGenerator.from_preset('default')
    generator(resampled(photograph('motorcycle_left.png'), 20_000)).select()  # compiles
    image = resampled(photograph('motorcycle_left.png'), megapixels * 1e6)
    model = peak_memory()
    marks: list[tuple[str, float]] = []
    wall_s = {}

    def on_progress(_: float, stage: str) -> None:
        if not marks or marks[-1][0] != stage:
            marks.append((stage, time.process_time()))
            wall_s[stage] = time.perf_counter()

    hierarchy = generator(image, on_progress)
    masks = hierarchy.select()
    marks.append(('end', time.process_time()))
    end_s = time.perf_counter()
    names = ['selecting masks' if stage == 'done' else stage for stage, _ in marks[:-1]]
    seconds = np.diff([moment for _, moment in marks]).tolist()
    stages_s = dict(zip(names, seconds, strict=True))
    vit_cpu_s = stages_s.pop(_VIT)
    return {
        'pixels': image.shape[0] * image.shape[1],
        'vit_cpu_s': vit_cpu_s,
        'rest_cpu_s': sum(stages_s.values()),
        'rest_wall_s': end_s - wall_s['finding superpixels'],
        'stages_s': stages_s,
        'model_mb': model / 1e6,
        'peak_mb': max(peak_memory() - model, _PAGE) / 1e6,
        'masks': len(masks),
    }


if __name__ == '__main__':
    with one_thread():
        print(json.dumps(measure(float(sys.argv[1]))))
