"""The same numbers in less time and memory: nothing here is needed to know what HCGNet is."""

import torch

is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)  # PyTorch before 2.3 has none
