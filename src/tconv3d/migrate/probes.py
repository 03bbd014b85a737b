# SPDX-License-Identifier: Apache-2.0
"""What a probe of the installed frameworks needs: both of them, small layers, and what they raise."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import RequestError

Array = NDArray[Any]


class Frameworks:
    """The installed PyTorch and MindSpore. RequestError where one is missing: a difference needs two."""

    def __init__(self) -> None:
        try:
            self.torch: Any = importlib.import_module("torch")
            self.mindspore: Any = importlib.import_module("mindspore")
        except ModuleNotFoundError as error:
            raise RequestError(f"the probes run both frameworks, and {error.name} is not installed") from None

    @property
    def versions(self) -> str:
        """Both versions in words."""
        return f"PyTorch {self.torch.__version__.partition('+')[0]}, MindSpore {self.mindspore.__version__}"

    def pytorch(self, *arguments: Any, **keywords: Any) -> Any:
        """A ConvTranspose3d."""
        return self.torch.nn.ConvTranspose3d(*arguments, **keywords)

    def conv3d_transpose(self, *arguments: Any, **keywords: Any) -> Any:
        """A Conv3dTranspose."""
        return self.mindspore.nn.Conv3dTranspose(*arguments, **keywords)

    def run(self, layer: Any, x: Array) -> Array:
        """The layer's output on an array."""
        if isinstance(layer, self.torch.nn.Module):
            with self.torch.no_grad():
                found: Array = layer(self.torch.tensor(x)).numpy()
            return found
        found = layer(self.mindspore.Tensor(x)).asnumpy()
        return found

    def pair(self, torch_words: dict[str, Any], mindspore_words: dict[str, Any], x: Array) -> tuple[Array, Array]:
        """The outputs of both layers, of equal weights and without bias, for 2 channels in and 3 out."""
        words = {"in_channels": 2, "out_channels": 3, "kernel_size": 3}
        first = self.pytorch(**(words | {"bias": False} | torch_words))
        second = self.conv3d_transpose(**(words | {"has_bias": False} | mindspore_words))
        weight = data(*second.weight.shape)
        with self.torch.no_grad():
            first.weight.copy_(self.torch.tensor(weight))
        second.weight.set_data(self.mindspore.Tensor(weight))
        return self.run(first, x), self.run(second, x)

    def parameters(self, kind: str) -> dict[str, Any]:
        """A constructor's parameters with their defaults, in order."""
        layer = self.torch.nn.ConvTranspose3d if kind == "torch" else self.mindspore.nn.Conv3dTranspose
        found = list(inspect.signature(layer.__init__).parameters.values())[1:]
        return {each.name: each.default for each in found}


def data(*shape: int) -> Array:
    """The same random float32 numbers on every run."""
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def raised(action: Callable[[], Any]) -> str:
    """The name of what an action raises, or 'nothing'."""
    try:
        action()
    except Exception as error:  # the kind is the finding
        return type(error).__name__
    return "nothing"


def close(a: Array, b: Array) -> bool:
    """Equal in shape, and in value up to float32's rounding."""
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-4, atol=1e-4))
