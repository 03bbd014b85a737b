# SPDX-License-Identifier: Apache-2.0
"""3-D transposed convolution: one engine under the contracts of PyTorch and MindSpore.

``import tconv3d`` gives the face for NumPy arrays (functions, both layers, initializers) and loads nothing heavier than
NumPy; faces for other frameworks load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from . import initializers
from ._engine import get_num_threads, set_num_threads, show_config
from .errors import AllocationTooLarge
from .functional import conv_transpose3d, conv_transpose3d_input_grad, conv_transpose3d_weight_grad, prepare
from .layers import Conv3dTranspose, ConvTranspose3d

__all__ = [
    "AllocationTooLarge",
    "Conv3dTranspose",
    "ConvTranspose3d",
    "conv_transpose3d",
    "conv_transpose3d_input_grad",
    "conv_transpose3d_weight_grad",
    "get_num_threads",
    "initializers",
    "prepare",
    "set_num_threads",
    "show_config",
]

_ON_FIRST_USE = ("torch", "mindspore", "dask", "migrate")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Here and not at the top: reading the metadata takes longer than importing the package.
        return import_module("importlib.metadata").version(__name__)
    if name in _ON_FIRST_USE:
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name == f"{__name__}.{name}":
                raise AttributeError(f"this version of {__name__} has no {name}") from None
            raise ImportError(f"{__name__}.{name} needs {error.name}; pip install '{__name__}[{name}]'") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE, "__version__"})
