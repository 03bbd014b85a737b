# SPDX-License-Identifier: Apache-2.0
"""What a call may take: output, packed weights and 64 MiB; nothing when it is refused; never memory still in view."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

import tconv3d

MIB = 2**20
ALLOWANCE = 64 * MIB


def run_python(program: str, *arguments: str) -> list[int]:
    """Run a program in a process of its own, whose peak is its own, and return the numbers that it prints."""
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return [int(word) for word in run.stdout.split()]


# Peaks are whole-process maxima, so nothing before the call may reach higher than what is alive when it starts.
PEAK = """
    import resource, sys
    import ml_dtypes, numpy as np
    import tconv3d

    def peak():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
"""
FORWARD = f"""{PEAK}
    name, layout = sys.argv[1:3]
    batch, c_in, c_out, groups, size, kernel, stride, padding = map(int, sys.argv[3:])
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    shape = (batch, c_in) + (size,) * 3
    if layout == "last":
        x = np.moveaxis(np.full((batch, *shape[2:], c_in), 0.5, dtype), -1, 1)
    else:
        x = np.full(shape, 0.5, dtype)
    weight = np.full((c_in, c_out // groups) + (kernel,) * 3, 0.5, dtype)
    before = peak()
    y = tconv3d.conv_transpose3d(x, weight, None, stride, padding, groups=groups)
    print(peak() - before, y.nbytes, weight.size * (8 if name == "float64" else 4))
"""
# batch, channels in and out, groups, size, kernel, stride, padding: large on one side each.
LAYERS = {
    "large_output": (1, 32, 16, 1, 64, 2, 2, 0),
    "large_input": (2, 64, 4, 1, 64, 3, 1, 1),
    "large_weight": (1, 1024, 512, 1, 4, 4, 2, 1),
    "depthwise": (1, 32, 32, 32, 64, 4, 2, 1),
    "one_channel": (1, 16, 1, 1, 96, 5, 2, 2),
}


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("layer", LAYERS)
def test_peak_of_a_forward_call(layer: str, dtype: str, layout: str) -> None:
    used, output, packed = run_python(FORWARD, dtype, layout, *map(str, LAYERS[layer]))
    assert used <= output + packed + ALLOWANCE


GRADIENTS = f"""{PEAK}
    name = sys.argv[1]
    batch, c_in, c_out, groups, size, kernel, stride, padding = map(int, sys.argv[2:])
    shape, weight = (batch, c_in) + (size,) * 3, (c_in, c_out // groups) + (kernel,) * 3
    grad_output = np.full((batch, c_out) + ((size - 1) * stride + kernel - 2 * padding,) * 3, 0.5, np.float32)
    other, wanted = (shape, weight) if name == "weight" else (weight, shape)
    operand = np.full(other, 0.5, np.float32)
    operands = (operand, grad_output) if name == "weight" else (grad_output, operand)
    function = getattr(tconv3d, "conv_transpose3d_" + name + "_grad")
    before = peak()
    gradient = function(*operands, wanted, stride, padding, groups=groups)
    print(peak() - before, gradient.nbytes, 4 * np.prod(weight))
"""


@pytest.mark.parametrize("gradient", ["input", "weight"])
@pytest.mark.parametrize("layer", LAYERS)
def test_peak_of_a_gradient(layer: str, gradient: str) -> None:
    """Packed weights, or sums in a layout of their own."""
    used, result, packed = run_python(GRADIENTS, gradient, *map(str, LAYERS[layer]))
    assert used <= result + packed + ALLOWANCE


def test_a_refusal_allocates_nothing() -> None:
    """16 TiB of output: the error comes before any page is touched."""
    grown, refused = run_python("""
        import resource, sys
        import numpy as np
        import tconv3d
        x, weight = np.ones((1, 1, 1, 1, 1), np.float32), np.ones((1, 1, 1, 1, 1), np.float32)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before, refused = peak(), 0
        for function in (tconv3d.conv_transpose3d, lambda *a, **k: tconv3d.ConvTranspose3d(1, 1, 1, **k)(a[0])):
            try:
                function(x, weight, stride=16384, output_padding=16383)
            except MemoryError as error:
                assert isinstance(error, tconv3d.AllocationTooLarge) and "in bytes" in str(error)
                refused += 1
        print(peak() - before, refused)
    """)
    assert refused == 2
    assert grown * 1024 < 4 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_AS")
def test_memory_that_the_system_refuses_is_a_memory_error() -> None:
    """A limit below the output: MemoryError, and the process goes on with smaller calls."""
    assert run_python("""
        import resource
        import numpy as np
        import tconv3d
        x, weight = np.ones((1, 8, 32, 32, 32), np.float32), np.ones((8, 64, 2, 2, 2), np.float32)
        small = tconv3d.conv_transpose3d(x[:, :, :2], weight, stride=2)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))
        try:
            tconv3d.conv_transpose3d(x, weight, stride=2)
        except MemoryError:
            print(1)
        again = tconv3d.conv_transpose3d(x[:, :, :2], weight, stride=2)
        print(int(np.array_equal(small, again)))
    """) == [1, 1]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_no_memory_is_handed_out_while_a_view_can_see_it(dtype: type) -> None:
    """Outputs come from memory that is used again; a view of one, whatever its kind, must keep it."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((4, 4, 2, 2, 2)).astype(dtype)
    views, copies = [], []
    for turn in range(12):
        y = tconv3d.conv_transpose3d(rng.standard_normal((1, 4, 24, 24, 24)).astype(dtype), weight, stride=2)
        view = [y[0, 1:], y.T, y.reshape(-1)[5:], y.view(np.uint8), np.asarray(memoryview(y.view(np.uint8)))][turn % 5]
        views.append(view)
        copies.append(view.copy())
        del y, view
    for view, copy in zip(views, copies, strict=True):
        assert view.tobytes() == copy.tobytes()
