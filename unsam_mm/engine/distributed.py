"""Distributed training on CPUs; MMEngine's launchers support accelerators only."""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta

import torch.distributed
from mmengine.config import Config

from unsam_mm.errors import UnSAMError

LAUNCHERS = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
}
"""Environment variables that each launcher sets."""

_PORT = '29500'  # torch's default


def join_cpu_processes(config: Config) -> None:
    """Initialises torch.distributed with gloo in a process that `config.launcher` started.

    Args:
        config: Changed in place: `model_wrapper_cfg` becomes a wrapper for CPUs.

    Raises:
        UnSAMError: If the launcher is not in `LAUNCHERS`, or did not start this process.
    """
    launcher = config.launcher
    if launcher not in LAUNCHERS:
        raise UnSAMError(f'--launcher {launcher} needs a CUDA device; on CPUs use one of {", ".join(LAUNCHERS)}')
    missing = [name for name in LAUNCHERS[launcher] if name not in os.environ]
    if missing:
        starter = 'torchrun' if launcher == 'pytorch' else 'srun'
        raise UnSAMError(f'--launcher {launcher}: {", ".join(missing)} is not set; start the processes with {starter}')
    if launcher == 'slurm':
        _translate_slurm()
    config.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'device_ids': None,
        'broadcast_buffers': False,
        'find_unused_parameters': config.get('find_unused_parameters', False),
        **config.get('model_wrapper_cfg', {}),
    }
    seconds = config.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=seconds) if seconds else None)


def _translate_slurm() -> None:
    """Sets the environment variables of torch from those of SLURM, except an address and a port that are set."""
    hosts = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = subprocess.run(hosts, capture_output=True, text=True, check=True).stdout.split()[0]
    os.environ.setdefault('MASTER_PORT', _PORT)
    os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    os.environ['RANK'] = os.environ['SLURM_PROCID']
    os.environ['LOCAL_RANK'] = os.environ.get('SLURM_LOCALID', '0')
