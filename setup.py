"""Packaging of mmhcg."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'mmhcg' / '__init__.py').read_text(encoding='utf-8'))[1]

setup(
    name='mmhcg',
    version=VERSION,
    description='HCGNet (AAAI 2020) as a backbone for MMDetection 3.x',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['mmhcg', 'mmhcg.*']),
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
        'test': ['pytest>=7', 'pytest-xdist>=3', 'ruff>=0.9'],
    },
)
