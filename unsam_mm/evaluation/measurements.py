"""What was measured already, so that an interrupted run over several benchmarks goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unsam_mm.errors import StoreError
from unsam_mm.files import read_json, write_json
from unsam_mm.fingerprints import file_digest

# These change how long a run takes and what it leaves behind, and not what it measures.
_NO_MATTER = ('outfile_prefix', 'collect_device', 'collect_dir', 'engine')


@dataclass(frozen=True)
class Measurement:
    """The figures of one checkpoint on one benchmark.

    Attributes:
        benchmark: Its name.
        checkpoint: Path, as it was given.
        checkpoint_sha256: Of the file.
        settings_sha256: See `fingerprint`.
        metrics: Name to value.
    """

    benchmark: str
    checkpoint: str
    checkpoint_sha256: str
    settings_sha256: str
    metrics: dict[str, float]

    @property
    def key(self) -> tuple[str, str, str]:
        """What must be the same for a measurement to hold."""
        return self.benchmark, self.checkpoint_sha256, self.settings_sha256


class Measurements:
    """The measurements that a file holds; each new one is on disk at once.

    Args:
        path: JSON file, which need not exist yet.

    Raises:
        StoreError: If the file cannot be read, or is of another kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_json(path) if path.exists() else {}
        try:
            measured = [Measurement(**entry) for entry in content.get('measurements', [])]
        except (AttributeError, TypeError) as error:
            raise StoreError(
                f'{path}: not a file of measurements ({error}); move it away, and all are made again'
            ) from error
        self._row = content.get('row')
        self._measured = {measurement.key: measurement for measurement in measured}

    def get(self, key: tuple[str, str, str]) -> Measurement | None:
        """The measurement with that `Measurement.key`, if there is one."""
        return self._measured.get(key)

    def add(self, measurement: Measurement) -> None:
        """Keeps a measurement, in place of an older one of the same key.

        Raises:
            StoreError: If the file cannot be written.
        """
        self._measured[measurement.key] = measurement
        self._write()

    def set_row(self, row: Mapping[str, Any]) -> None:
        """Keeps the row that was printed last.

        Raises:
            StoreError: If the file cannot be written.
        """
        self._row = dict(row)
        self._write()

    def _write(self) -> None:
        write_json(self.path, {'row': self._row, 'measurements': [asdict(m) for m in self._measured.values()]})


def fingerprint(model: Mapping[str, Any], dataset: Mapping[str, Any], evaluator: Any) -> str:
    """SHA-256 of all settings that a figure depends on, and of the annotation files that they name.

    Args:
        model: Config of the model.
        dataset: Config of the data set, with its pipeline.
        evaluator: Config of the metric, or a list of them.
    """
    contents: dict[str, str] = {}

    def plain(value: Any, root: str = '') -> Any:
        if isinstance(value, Mapping):
            root = str(value.get('data_root') or root)
            return {str(key): plain(entry, root) for key, entry in value.items() if key not in _NO_MATTER}
        if isinstance(value, (list, tuple)):
            return [plain(entry, root) for entry in value]
        if isinstance(value, str) and value.endswith('.json'):
            for path in (Path(value), Path(root, value)):
                if path.is_file():
                    contents[str(path)] = file_digest(path)
        return value

    settings = plain({'model': model, 'dataset': dataset, 'evaluator': evaluator})
    text = json.dumps([settings, contents], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
