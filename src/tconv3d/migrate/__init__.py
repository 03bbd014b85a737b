# SPDX-License-Identifier: Apache-2.0
"""Moving a model between PyTorch and MindSpore: source, checkpoints, and the proof that nothing changed.

    source/        code of one framework rewritten for the other; nothing of it is executed
    checkpoint/    .pth, .safetensors and .ckpt, each read and written as a stream
    verify.py      two layers or two networks on the same inputs; report.py shows the result
    page.py        the official comparison page, re-proved statement by statement
    table.py       every difference of the two layers, each with a probe

What reads one layer call and finds its equal lies here as well: signature, layer, equal, differences, initial_weights.
"""

from __future__ import annotations

from ..errors import RequestError

__all__ = ["RequestError"]
