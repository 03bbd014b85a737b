# SPDX-License-Identifier: Apache-2.0
"""Networks in the style of MindSpore's model zoo: SOURCE, the class to build, and its input shape."""

from __future__ import annotations

HEAD = "import mindspore as ms\nimport mindspore.nn as nn\nfrom mindspore import ops\nimport mindspore.ops as P\n\n"

# name -> (code, expression that builds the network, input shape, places that must stay)
SNIPPETS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "pad with six equal sides": (
        """
class Up(nn.Cell):
    def __init__(self, in_channels, out_channels):
        super(Up, self).__init__()
        self.up = nn.Conv3dTranspose(in_channels, out_channels, kernel_size=(4, 4, 4), stride=2, pad_mode="pad",
                                     padding=(1, 1, 1, 1, 1, 1), has_bias=True)

    def construct(self, x):
        return self.up(x)
""",
        "Up(3, 2)", (1, 3, 3, 4, 5),
    ),
    "pad with sides per axis": (
        """
class Up(nn.Cell):
    def __init__(self):
        super().__init__()
        self.up = nn.Conv3dTranspose(2, 4, (3, 5, 4), (2, 2, 1), "pad", (0, 0, 2, 2, 1, 1), group=2)
        self.relu = nn.ReLU()

    def construct(self, x):
        return self.relu(self.up(x))
""",
        "Up()", (2, 2, 3, 4, 5),
    ),
    "pad with unequal sides": (
        """
class Up(nn.Cell):
    def __init__(self):
        super().__init__()
        self.up = nn.Conv3dTranspose(2, 3, 5, 2, pad_mode='pad', padding=(0, 2, 3, 1, 1, 0), has_bias=True)

    def construct(self, x):
        return self.up(x)
""",
        "Up()", (1, 2, 4, 4, 5),
    ),
    "same with an even total": (
        """
class Decoder(nn.Cell):
    def __init__(self, channel):
        super().__init__()
        self.layers = nn.SequentialCell([
            nn.Conv3dTranspose(channel, channel // 2, kernel_size=4, stride=2, pad_mode='same'),
            nn.LeakyReLU(alpha=0.1),
            nn.Conv3d(channel // 2, 1, 3),
        ])

    def construct(self, x):
        return self.layers(x)
""",
        "Decoder(4)", (1, 4, 3, 3, 4),
    ),
    "same with an odd total": (
        """
class Decoder(nn.Cell):
    def __init__(self):
        super().__init__()
        self.up = nn.Conv3dTranspose(3, 2, kernel_size=3, stride=2)  # 'same' is the default

    def construct(self, x):
        return ops.relu(self.up(x))
""",
        "Decoder()", (2, 3, 3, 4, 5),
    ),
    "same with a short kernel": (
        """
STRIDE = 3

class Decoder(nn.Cell):
    def __init__(self):
        super().__init__()
        self.up = nn.Conv3dTranspose(2, 2, 2, STRIDE, has_bias=True, pad_mode='SAME')

    def construct(self, x):
        return self.up(x)
""",
        "Decoder()", (1, 2, 2, 3, 2),
    ),
    "valid, two sizes of kernel": (
        """
class Tower(nn.Cell):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv3dTranspose(2, 3, (5, 3, 1), (2, 3, 3), pad_mode='valid')
        self.second = nn.Conv3dTranspose(3, 1, 1, 2, pad_mode='valid', has_bias=True)

    def construct(self, x):
        return self.second(self.first(x))
""",
        "Tower()", (1, 2, 2, 2, 3),
    ),
    "a block with batch norm and a skip": (
        """
class UpBlock(nn.Cell):
    def __init__(self, in_channels, skip_channels, out_channels):
        super().__init__()
        self.up = nn.Conv3dTranspose(in_channels, out_channels, kernel_size=2, stride=2, pad_mode='pad', padding=0)
        self.bn = nn.BatchNorm3d(out_channels, momentum=0.95)
        self.conv = nn.Conv3d(out_channels + skip_channels, out_channels, 3, pad_mode='pad', padding=1, has_bias=True)
        self.cat = P.Concat(axis=1)
        self.act = nn.ReLU()

    def construct(self, x):
        y = self.act(self.bn(self.up(x)))
        return self.act(self.conv(self.cat((y, y))))
""",
        "UpBlock(4, 2, 2)", (1, 4, 2, 3, 2),
    ),
    "the function": (
        """
class Functional(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = ms.Parameter(ms.Tensor([[[[[1.0, -2.0], [3.0, 4.0]], [[0.5, 6.0], [7.0, -8.0]]]]], ms.float32))

    def construct(self, x):
        y = ops.conv3d_transpose(x, self.weight, pad_mode='pad', padding=(1, 1, 0, 0, 1, 1), stride=(2, 2, 3))
        return ops.concat((y, y), axis=1)
""",
        "Functional()", (1, 1, 3, 2, 3),
    ),
    "the function, same and valid": (
        """
class Functional(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = ms.Parameter(ms.Tensor([[[[[1.0, -2.0, 5.0], [3.0, 4.0, 1.0]]]]], ms.float32))

    def construct(self, x):
        y = ops.conv3d_transpose(x, self.weight, 'same', stride=2)
        return ops.conv3d_transpose(y, self.weight, stride=(2, 1, 3))
""",
        "Functional()", (1, 1, 2, 3, 4),
    ),
    "a subclass with a crop": (
        """
class Up(nn.Conv3dTranspose):
    def __init__(self, channels):
        super().__init__(channels, channels, kernel_size=5, stride=2, pad_mode='same', has_bias=True)

    def construct(self, x):
        return super().construct(x) * 2
""",
        "Up(2)", (1, 2, 3, 3, 3),
    ),
}  # fmt: skip
