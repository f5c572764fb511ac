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
    install_requires=[
        'torch>=2.1',  # the oldest that is tested: make compat-oldest
        'safetensors>=0.4',  # of the year of PyTorch 2.1
    ],
    extras_require={
        # The last official releases, which fit together; nothing newer is expected.
        'standalone': [
            'mmengine==0.10.7',
            'mmcv-lite==2.1.0',  # mmdet 3.3.0 refuses 2.2
            'mmdet==3.3.0',
            'torchvision>=0.16',  # the one for PyTorch 2.1; mmcv's operators, see mmhcg/stack
            'setuptools<81',  # mmengine resolves `mmdet::` by pkg_resources, which 82 dropped
        ],
        # The last release: the classifiers of configs/pretrain, beside standalone
        'pretrain': ['mmpretrain==1.2.0'],
        # tools/export.py, to .onnx: of the time of PyTorch 2.6, the first that it runs with
        'export': ['onnx>=1.16', 'onnxruntime>=1.18', 'onnxscript>=0.2'],
        'attack': ['foolbox>=3.3.4'],  # tools/robustness.py; its last release
        'test': [
            'hypothesis>=6',
            'mypy>=1.11',
            'pytest>=7.3',  # tmp_path_retention_count
            'pytest-cov>=4',
            'pytest-xdist>=3.2',  # --dist worksteal
            'ruff>=0.9',  # whose formatting style the code has
            'wheel',  # for setuptools<70
        ],
    },
    entry_points={'console_scripts': ['mmhcg = mmhcg.__main__:main']},
)
