# SPDX-License-Identifier: Apache-2.0
"""The PyTorch code of both examples of the official comparison page, its import line alone changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_page_examples import EXAMPLE_1, EXAMPLE_2, all_ones

# As the page has it, but for the last call of print, whose output is asserted.
PAGE = """
import torch
from torch import tensor
import torch.nn as nn
import numpy as np

k = 5
s = 3
x_ = np.ones([1, 3, 4, 9, 16])
x = tensor(x_, dtype=torch.float32)
net = nn.ConvTranspose3d(3, 32, kernel_size=k, stride=s, {arguments}bias=False)
net.weight.data = torch.ones(3, 32, k, k, k)
output = net(x).detach().numpy()
"""


def run_page(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.mark.parametrize(
    ("arguments", "front", "shape"),
    [("padding=(k-1)//2, output_padding=s-1, ", 2, EXAMPLE_1), ("", 0, EXAMPLE_2)],
    ids=["example 1", "example 2"],
)
def test_the_page_with_one_line_changed(arguments: str, front: int, shape: tuple[int, ...]) -> None:
    code = PAGE.replace("{arguments}", arguments)
    theirs = run_page(code)
    ours = run_page(code.replace("import torch.nn as nn", "import tconv3d.torch as nn"))
    assert type(ours["net"]).__module__ == "tconv3d.torch.layers"
    assert type(theirs["net"]).__module__ == "torch.nn.modules.conv"
    assert ours["output"].shape == shape
    assert np.array_equal(ours["output"], all_ones(front, shape[2:]))
    assert np.array_equal(ours["output"], theirs["output"])
