# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of both frameworks, read and written tensor by tensor; MindSpore need not be installed.

tensors.py             one tensor of a file: name, dtype, shape, bytes on demand
ckpt.py                MindSpore's .ckpt        safetensors_file.py   .safetensors
torch_file.py          PyTorch's .pth and .pt   files.py              which of them a file is; atomic writing
rules.py               the names of parameters per layer; a user's own rules
rename.py              which layer a group of keys belongs to, and its new keys
convert.py             one file to another
"""

from __future__ import annotations
