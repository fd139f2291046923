"""A small folder of real images in every dress that users bring."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data

pytest.importorskip('mmdet')

from mmengine.registry import DefaultScope

READABLE = ('Coffee.JPG', 'micro/coins16.tif', 'micro/deep/cell.png', 'rgba.png')


@pytest.fixture(autouse=True)
def mmdet_scope():
    """What a runner sets up: names in pipelines are looked up among mmdet's."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture
def image_folder(tmp_path):
    """Nested folders, an upper-case suffix, RGBA, 16 bit, a broken file, hidden files and a text file."""
    root = tmp_path / 'images'
    (root / 'micro' / 'deep').mkdir(parents=True)
    (root / '.cache').mkdir()
    coffee = Image.fromarray(data.coffee()[:120, :160])
    coffee.save(root / 'Coffee.JPG')
    coffee.save(root / '.cache' / 'hidden.png')
    coffee.save(root / '.hidden.png')
    rgba = np.dstack([data.astronaut()[:90, 180:310], np.full((90, 130), 200, np.uint8)])
    Image.fromarray(rgba).save(root / 'rgba.png')
    tifffile.imwrite(root / 'micro' / 'coins16.tif', data.coins()[:110, :150].astype(np.uint16) * 20)
    Image.fromarray(data.cell()[200:330, 100:240]).save(root / 'micro' / 'deep' / 'cell.png')
    (root / 'broken.png').write_bytes((root / 'rgba.png').read_bytes()[:2000])
    (root / 'notes.txt').write_text('not an image')
    return root
