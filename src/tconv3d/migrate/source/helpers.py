# SPDX-License-Identifier: Apache-2.0
"""Small definitions that rewritten code may need, in plain PyTorch or plain MindSpore. Each is added to a file once.

`{nn}`, `{F}` and `{ops}` stand for the names under which the file imports these modules.
"""

from __future__ import annotations

SIZES, SIDES, ADD_BIAS = "_sizes", "_sides", "_add_bias"
CROPPED, INITIALISED, FUNCTION = "_CroppedConvTranspose3d", "_initialised", "_conv3d_transpose"

NN, F, OPS = "{nn}", "{F}", "{ops}"

TEXTS = {
    SIZES: '''
def _sizes(value):
    """MindSpore takes an int or a tuple of three ints where PyTorch takes any iterable."""
    if isinstance(value, int):
        return value
    value = tuple(value)
    return value[0] if len(value) == 1 else value
''',
    SIDES: '''
def _sides(padding):
    """PyTorch's padding, one a side per axis, as MindSpore's six: front and back of each axis."""
    if isinstance(padding, int):
        return padding
    padding = tuple(padding)
    return padding[0] if len(padding) == 1 else tuple(side for size in padding for side in (size, size))
''',
    ADD_BIAS: '''
def _add_bias(y, bias):
    """MindSpore's functional form has no bias."""
    return y if bias is None else y + bias.reshape((1, -1, 1, 1, 1))
''',
    CROPPED: '''
class _CroppedConvTranspose3d({nn}.ConvTranspose3d):
    """ConvTranspose3d whose output loses its first and last samples, for crops that differ in front and at the back."""

    def __init__(self, *args, drop_front=(0, 0, 0), drop_back=(0, 0, 0), **kwargs):
        super().__init__(*args, **kwargs)
        self.drop_front, self.drop_back = drop_front, drop_back

    def forward(self, input, output_size=None):
        y = super().forward(input, output_size)
        sides = zip(self.drop_front, self.drop_back, y.shape[-3:])
        d, h, w = (slice(front, size - back) for front, back, size in sides)
        return y[..., d, h, w]
''',
    INITIALISED: '''
def _initialised(layer, weight=None, bias=None):
    """Fill a fresh layer as MindSpore's weight_init and bias_init would."""
    for parameter, law in ((layer.weight, weight), (layer.bias, bias)):
        if parameter is not None and law is not None:
            law(parameter)
    return layer
''',
    FUNCTION: '''
def _conv3d_transpose(x, weight, pad_mode, stride=1, dilation=1, groups=1):
    """MindSpore's 'same' and 'valid' on F.conv_transpose3d: the crop follows from the weight's shape."""
    stride, dilation = ((v,) * 3 if isinstance(v, int) else tuple(v) for v in (stride, dilation))
    excess = [d * (k - 1) + 1 - s for k, s, d in zip(weight.shape[2:], stride, dilation)]
    extra = [max(0, -e) for e in excess]  # a kernel shorter than the stride is followed by zeros
    crop = [max(0, e) for e in excess] if pad_mode == "same" else [0, 0, 0]
    y = {F}.conv_transpose3d(x, weight, None, stride, [c // 2 for c in crop], 0, groups, dilation)
    y = {F}.pad(y, [n for e in reversed(extra) for n in (0, e)])
    d, h, w = (slice(0, size - c % 2) for size, c in zip(y.shape[-3:], crop))
    return y[..., d, h, w]
''',
}
