"""MMEngine's extension point for checkpoints: a loader for each prefix of their names, each a safe one.

MMEngine logs what follows `load_from_` in the loaders' names.
"""

import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from mmhcg.stack.checkpoints import CheckpointError, MapLocation, load_checkpoint_file


def register_safe_loading() -> None:
    """Let MMEngine (Runner, init_cfg, mmdet) load all checkpoints as `load_checkpoint_file` does."""
    for prefixes, loader in (
        ('', load_from_local),
        (('http://', 'https://'), load_from_http),
        (('modelzoo://', 'torchvision://'), load_from_torchvision),
        (('open-mmlab://', 'openmmlab://'), load_from_openmmlab),
        ('mmcls://', load_from_mmcls),
        ('pavi://', load_from_pavi),
        ((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_ceph),
    ):
        CheckpointLoader.register_scheme(prefixes, loader, force=True)


def load_from_local(filename: str, map_location: MapLocation = None) -> Any:
    return load_checkpoint_file(filename, map_location)


def load_from_http(filename: str, map_location: MapLocation = None) -> Any:
    """Load from PyTorch's folder of downloads, to which the first process adds what is not there yet."""
    path = Path(torch.hub.get_dir(), 'checkpoints', os.path.basename(urlparse(filename).path))
    rank, world_size = get_dist_info()
    if rank == 0:
        _download(filename, path)
    if world_size > 1:
        barrier()
        _download(filename, path)  # on machines that do not see the first one's disk
    return load_checkpoint_file(path, map_location)


def load_from_torchvision(filename: str, map_location: MapLocation = None) -> Any:
    return load_from_http(_address(filename, mmengine_checkpoint.get_torchvision_models()), map_location)


def load_from_openmmlab(filename: str, map_location: MapLocation = None) -> Any:
    prefix, name = filename.split('://', 1)
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    place = _address(f'{prefix}://{name}', mmengine_checkpoint.get_external_models())
    if urlparse(place).scheme in ('http', 'https'):
        return load_from_http(place, map_location)
    return load_checkpoint_file(Path(mmengine_checkpoint._get_mmengine_home(), place), map_location)


def load_from_mmcls(filename: str, map_location: MapLocation = None) -> Any:
    checkpoint = load_from_http(_address(filename, mmengine_checkpoint.get_mmcls_models()), map_location)
    return mmengine_checkpoint._process_mmcls_checkpoint(checkpoint)


def load_from_pavi(filename: str, map_location: MapLocation = None) -> Any:
    raise CheckpointError(f'checkpoint {filename}: download it from PAVI and name the file instead.')


def load_from_ceph(filename: str, map_location: MapLocation = None) -> Any:
    backend = get_file_backend(filename, backend_args={'backend': 'petrel'})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, os.path.basename(filename))
        path.write_bytes(backend.get(filename))
        return load_checkpoint_file(path, map_location)


def _address(filename: str, models: dict[str, str]) -> str:
    """Where the model lies that `filename`, a prefix and a name, stands for."""
    name = filename.split('://', 1)[1]
    if name not in models:
        raise CheckpointError(f'checkpoint {filename}: MMEngine knows no model {name!r}. Check the name.')
    return models[name]


def _download(url: str, path: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except OSError as error:
        raise CheckpointError(
            f'checkpoint {url}: cannot be downloaded ({error}). Put it at {path}, if there is no network.'
        ) from error
