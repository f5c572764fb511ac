"""Packaging of mmhcg."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'mmhcg' / '__init__.py').read_text(encoding='utf-8'))[1]


class BuildWithConfigs(build_py):
    """Puts configs and tools into a wheel at `mmhcg/.mim`, where MIM looks for them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib, 'mmhcg', '.mim')
        for folder in ('configs', 'tools'):
            ignore = shutil.ignore_patterns('__pycache__')
            shutil.copytree(ROOT / folder, mim / folder, ignore=ignore, dirs_exist_ok=True)
        shutil.copy(ROOT / 'model-index.yml', mim)


setup(
    name='mmhcg',
    version=VERSION,
    description='HCGNet (AAAI 2020) as a backbone for MMDetection 3.x',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    project_urls={'Paper': 'https://arxiv.org/abs/1908.09699'},
    packages=find_packages(include=['mmhcg', 'mmhcg.*']),
    cmdclass={'build_py': BuildWithConfigs},
    python_requires='>=3.9',
    # Neither MMDetection, mmcv nor MMEngine: pip would write over those, or the fork of them, already there.
    install_requires=['torch>=2.1', 'safetensors>=0.4'],
    extras_require={
        'standalone': [
            'mmengine==0.10.7',
            'mmcv-lite==2.1.0',  # mmdet 3.3.0 refuses 2.2
            'mmdet==3.3.0',
            'torchvision>=0.16',  # mmcv's operators, see mmhcg/stack
            'setuptools<81',  # mmengine resolves `mmdet::` by pkg_resources, which 82 dropped
        ],
        'pretrain': ['mmpretrain==1.2.0'],  # the classifiers of configs/pretrain, beside standalone
        'export': ['onnx>=1.16', 'onnxruntime>=1.18', 'onnxscript>=0.2'],  # tools/export.py, to .onnx
        'attack': ['foolbox>=3.3.4'],  # tools/robustness.py
        'test': [
            'hypothesis>=6',
            'mypy>=1.11',
            'pytest>=7.3',  # tmp_path_retention_count
            'pytest-cov>=4',
            'pytest-xdist>=3.2',
            'ruff>=0.9',
            'wheel',  # for setuptools<70
        ],
    },
)
