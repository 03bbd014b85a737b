# SPDX-License-Identifier: Apache-2.0
"""Upsampling and layers from file to file: the numbers, against SciPy and against the same layer on whole arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

import tconv3d
from tconv3d.cli import main
from tconv3d.volumes import plan, streaming

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks in small volumes."""
    monkeypatch.setattr(plan, "LARGEST_BLOCK", 4000)


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def values(path: Path) -> Array:
    """What another library reads from a file, as (leading axes, D, H, W) of the volume that was put in."""
    if path.suffix == ".zarr":
        return np.asarray(zarr.open_array(str(path), mode="r")[:])
    if path.name.endswith((".nii", ".nii.gz")):
        array = np.asanyarray(nibabel.load(path).dataobj)
        return np.moveaxis(array, (0, 1, 2), (-3, -2, -1)) if array.ndim < 5 else array.transpose(3, 4, 0, 1, 2)
    return tifffile.imread(path) if path.suffix == ".tif" else np.load(path)


def write(path: Path, array: Array) -> Path:
    if path.suffix == ".zarr":
        zarr.save_array(str(path), array)
    elif path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(np.moveaxis(array, (-3, -2, -1), (0, 1, 2)), np.diag([2.0, 3, 4, 1])), path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": "TCZYX"[-array.ndim :]})
    else:
        np.save(path, array)
    return path


@pytest.mark.parametrize("scale", [(2, 2, 2), (3, 3, 3), (1, 2, 5), (4, 1, 3)])
def test_linear_equals_scipy_up_to_the_border(scale: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((7, 11, 9))
    run("upsample", write(tmp_path / "x.npy", x), tmp_path / "y.npy", "--scale", ",".join(map(str, scale)))
    expected = ndimage.zoom(x, scale, order=1, grid_mode=True, mode="nearest")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-13, atol=1e-13)


def test_nearest_repeats_and_linear_keeps_a_ramp(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(-(2**50), 2**50, (2, 5, 6, 7))
    run("upsample", write(tmp_path / "x.npy", x), tmp_path / "y.npy", "--scale", "3,1,2", "--kernel", "nearest")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), x.repeat(3, 1).repeat(2, 3))
    ramp = np.broadcast_to(np.arange(8.0), (3, 4, 8))
    for kernel, border in (("linear", 1), ("cubic", 2)):
        target = tmp_path / f"{kernel}.npy"
        run("upsample", write(tmp_path / "r.npy", ramp), target, "--scale", 4, "--kernel", kernel)
        middle = slice(4 * border, -4 * border)
        expected = (np.arange(32) + 0.5) / 4 - 0.5
        # Keys' kernel keeps straight lines for a = -1/2 alone; -3/4 leaves some hundredths of a step.
        tolerance = 1e-12 if kernel == "linear" else 0.05
        got = np.load(target)
        np.testing.assert_allclose(got[..., middle], np.broadcast_to(expected, got.shape)[..., middle], atol=tolerance)


def test_a_volume_of_one_sample_and_of_no_neighbors(tmp_path: Path) -> None:
    for shape in ((1, 1, 1), (1, 5, 1), (2, 1, 2)):
        x = np.random.default_rng(0).standard_normal(shape)
        for kernel in ("linear", "cubic", "nearest"):
            run(
                "upsample",
                write(tmp_path / "x.npy", x),
                tmp_path / "y.npy",
                "--scale",
                3,
                "--kernel",
                kernel,
                "--overwrite",
            )
            got = np.load(tmp_path / "y.npy")
            assert got.shape == tuple(3 * size for size in shape)
            if x.size == 1:
                np.testing.assert_allclose(got, x.item(), rtol=1e-12)


@pytest.mark.parametrize("target", ["y.npy", "y.zarr", "y.nii", "y.nii.gz", "y.tif"])
@pytest.mark.parametrize("source", ["x.npy", "x.zarr", "x.nii", "x.nii.gz", "x.tif"])
def test_blocks_have_the_bits_of_the_whole_in_every_format(source: str, target: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 9, 14, 11)).astype(np.float32)
    run("upsample", write(tmp_path / source, x), tmp_path / target, "--scale", "2,3,2")
    weight = np.einsum("i,j,k->ijk", [1, 3, 3, 1], [1, 2, 3, 2, 1], [1, 3, 3, 1]) / 4 / 3 / 4
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)), mode="edge")
    whole = tconv3d.conv_transpose3d(
        padded[:, None], weight[None, None].astype("f4"), stride=(2, 3, 2), padding=(3, 4, 3)
    )
    got = values(tmp_path / target)
    if ("nii" in source) != ("nii" in target) and "tif" in source + target:  # x, y, z becomes z, y, x and back
        got = got.transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(got, whole[:, 0])


@pytest.mark.parametrize("seed", range(12))
def test_apply_has_the_bits_of_the_whole_on_random_layers(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    groups, kernel, stride, dilation = int(rng.integers(1, 3)), *(rng.integers(1, 4, 3) for _ in range(3))
    channels, columns = groups * rng.integers(1, 4, 2)
    size, padding = rng.integers(3, 12, 3), rng.integers(0, 2, 3)
    x = rng.standard_normal((2, channels, *size)).astype(np.float32)
    weight = rng.standard_normal((channels, columns // groups, *kernel)).astype(np.float32)
    bias = rng.standard_normal(columns).astype(np.float32)
    np.savez(tmp_path / "w.npz", weight=weight, bias=bias)
    arguments = {"stride": stride, "padding": np.minimum(padding, dilation * (kernel - 1)), "dilation": dilation}
    arguments = {name: tuple(map(int, value)) for name, value in arguments.items()}
    options = [f"--{name}={','.join(map(str, value))}" for name, value in arguments.items()]
    target = tmp_path / ["y.npy", "y.zarr"][seed % 2]
    run(
        "apply",
        tmp_path / "w.npz",
        write(tmp_path / "x.npy", x),
        target,
        "--contract",
        "pytorch",
        *options,
        "--groups",
        groups,
    )
    whole = tconv3d.conv_transpose3d(x, weight, bias, groups=groups, **arguments)
    np.testing.assert_array_equal(values(target), whole)


def test_apply_follows_mindspores_contract(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 6, 7, 8)).astype("f4"), rng.standard_normal((3, 2, 4, 5, 3)).astype("f4")
    write(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", weight)
    for number, (options, layer) in enumerate(
        [
            ([], {}),
            (["--pad-mode=valid", "--stride=3"], {"pad_mode": "valid", "stride": 3}),
            (
                ["--pad-mode=pad", "--padding=0,1,2,1,0,1", "--stride=2", "--output-padding=1"],
                {"pad_mode": "pad", "padding": (0, 1, 2, 1, 0, 1), "stride": 2, "output_padding": 1},
            ),
        ]
    ):
        target = tmp_path / f"y{number}.npy"
        run("apply", tmp_path / "w.npy", tmp_path / "x.npy", target, "--contract", "mindspore", *options)
        whole = tconv3d.Conv3dTranspose(3, 2, (4, 5, 3), **layer)
        whole.weight = weight
        np.testing.assert_array_equal(np.load(target), whole(x[None])[0])


def test_a_single_channel_enters_and_leaves_without_an_axis(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, many, one = (
        rng.standard_normal((5, 6, 7)),
        rng.standard_normal((1, 4, 2, 2, 2)),
        rng.standard_normal((4, 1, 2, 2, 2)),
    )
    np.save(tmp_path / "many.npy", many)
    np.save(tmp_path / "one.npy", one)
    write(tmp_path / "x.npy", x)
    run("apply", tmp_path / "many.npy", tmp_path / "x.npy", tmp_path / "4.nii", "--contract", "torch", "--stride", 2)
    middle = tconv3d.conv_transpose3d(x[None], many, stride=2)
    assert nibabel.load(tmp_path / "4.nii").shape == (10, 12, 14, 4)
    np.testing.assert_array_equal(values(tmp_path / "4.nii"), middle)
    run("apply", tmp_path / "one.npy", tmp_path / "4.nii", tmp_path / "1.npy", "--contract", "torch")
    np.testing.assert_array_equal(np.load(tmp_path / "1.npy"), tconv3d.conv_transpose3d(middle, one))


def test_integers_are_rounded_to_even_and_saturate(tmp_path: Path) -> None:
    x = np.array([[[0, 1, 2, 255, 255]]], np.uint8)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "half.npy", np.full((1, 1, 1, 1, 1), 0.5, np.float32))
    np.save(tmp_path / "minus.npy", np.full((1, 1, 1, 1, 1), -300, np.float32))
    expected = {
        ("half.npy", "uint8"): [0, 0, 1, 128, 128],
        ("half.npy", "float32"): [0, 0.5, 1, 127.5, 127.5],
        ("minus.npy", "int16"): [0, -300, -600, -32768, -32768],
        ("minus.npy", "uint8"): [0, 0, 0, 0, 0],
        ("minus.npy", "int64"): [0, -300, -600, -76500, -76500],
    }
    for (weights, dtype), row in expected.items():
        options = ["--contract", "torch", "--dtype", dtype, "--overwrite"]
        run("apply", tmp_path / weights, tmp_path / "x.npy", tmp_path / "y.npy", *options)
        y = np.load(tmp_path / "y.npy")
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.ravel(), row)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", ">i2", "int32", "float16", "float64", "complex64", "bool"]
)
def test_dtypes_come_back_as_they_went(dtype: str, tmp_path: Path) -> None:
    x = (np.random.default_rng(0).random((4, 5, 6)) * 100).astype(dtype)
    if dtype == "complex64":
        x.imag = x.real[::-1]
    run("upsample", write(tmp_path / "x.npy", x), tmp_path / "y.npy", "--scale", 2)
    y = np.load(tmp_path / "y.npy")
    assert y.dtype == np.dtype(dtype).newbyteorder("<")
    parts = (x.real, y.real), (x.imag, y.imag)  # SciPy forgets grid_mode for complex numbers
    for before, after in parts[: 2 if dtype == "complex64" else 1]:
        exact = ndimage.zoom(before.astype(float), 2, order=1, grid_mode=True, mode="nearest")
        if y.dtype.kind in "iub":
            exact = np.rint(exact)  # weights are multiples of 1/64, so float32 was exact
        tolerance = 2e-3 if dtype == "float16" else 1e-5
        np.testing.assert_allclose(after.astype(float), exact, rtol=tolerance, atol=tolerance)


def test_integers_beyond_what_float64_holds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "x.npy", np.full((2, 2, 2), 2**53 + 1))
    message = refusal(capsys, "upsample", tmp_path / "x.npy", tmp_path / "y.npy", "--scale", 2)
    assert "largest magnitude of the input is 9007199254740993" in message


def test_a_kernel_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).standard_normal((4, 5, 6))
    write(tmp_path / "x.npy", x)
    np.save(tmp_path / "k.npy", np.array([1, 2, 2, 1.0]))
    run("upsample", tmp_path / "x.npy", tmp_path / "y.npy", "--scale", "1,2,2", "--kernel", tmp_path / "k.npy")
    weight = np.einsum("j,k->jk", [1, 2, 2, 1], [1, 2, 2, 1.0])[None, None, None]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    whole = tconv3d.conv_transpose3d(padded[None], weight, stride=(1, 2, 2), padding=(0, 3, 3))[0]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), whole)
    np.save(tmp_path / "k.npy", np.ones(3))
    message = refusal(
        capsys, "upsample", tmp_path / "x.npy", tmp_path / "z.npy", "--scale", 2, "--kernel", tmp_path / "k.npy"
    )
    assert "kernel's shape is (3, 3, 3)" in message and not (tmp_path / "z.npy").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scale", "0"], "at least 1"),
        (["--scale", "2,2"], "2 entries"),
        (["--scale", "x"], "not a number"),
        (["--scale", "2", "--kernel", "sinc"], "there are nearest, linear, cubic"),
        (["--scale", "2", "--kernel", "none.npy"], "none.npy"),
        (["--scale", "2", "--dtype", "rgb"], "no such dtype"),
        (["--scale", "2", "--memory", "much"], "no size of memory"),
        (["--scale", "2", "--memory", "1MB"], "are needed"),
        (["--scale", "2", "--scheduler", "tcp://127.0.0.1:1"], "no scheduler answers"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(streaming, "_CONNECT", 1)
    write(tmp_path / "x.npy", np.zeros((4, 5, 6), np.float32))
    message = refusal(capsys, "upsample", tmp_path / "x.npy", tmp_path / "y.npy", *options)
    assert words in message and message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_inputs_that_are_no_volume_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "flat.npy", np.zeros((4, 5)))
    np.save(tmp_path / "empty.npy", np.zeros((4, 0, 5)))
    np.save(tmp_path / "text.npy", np.full((2, 2, 2), "a"))
    (tmp_path / "x.npy").write_bytes(b"nothing")
    (tmp_path / "x.tif").write_bytes(b"nothing")
    (tmp_path / "x.nii").write_bytes(b"nothing")
    (tmp_path / "x.nii.gz").write_bytes(b"nothing")
    (tmp_path / "x.png").write_bytes(b"nothing")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "cut.npy", np.zeros((4, 5, 6)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    before = sorted(tmp_path.iterdir())
    for name in (
        "none.npy",
        "flat.npy",
        "empty.npy",
        "text.npy",
        "x.npy",
        "x.tif",
        "x.nii",
        "x.nii.gz",
        "x.png",
        "folder",
        "cut.npy",
    ):
        message = refusal(capsys, "upsample", tmp_path / name, tmp_path / "y.npy", "--scale", 2)
        assert name in message and message.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_weights_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    tensors = {
        "up1.weight": rng.standard_normal((2, 3, 2, 2, 2)).astype("f4"), "up1.bias": np.arange(3, dtype="f4"),
        "up2.weight": rng.standard_normal((2, 1, 3, 3, 3)).astype("f2"), "head.bias": np.ones(1, "f4"),
    }  # fmt: skip
    save_file(tensors, tmp_path / "w.safetensors")
    x = rng.standard_normal((2, 4, 5, 6)).astype("f4")
    call = [
        "apply",
        tmp_path / "w.safetensors",
        write(tmp_path / "x.npy", x),
        tmp_path / "y.npy",
        "--contract",
        "torch",
    ]
    assert "up1.weight, up2.weight; choose one with --name" in refusal(capsys, *call)
    assert "no weight of five axes named up3" in refusal(capsys, *call, "--name", "up3")
    run(*call, "--name", "up1")
    whole = tconv3d.conv_transpose3d(x, tensors["up1.weight"], tensors["up1.bias"])
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), whole)
    run(*call, "--name", "up1", "--no-bias", "--overwrite")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), tconv3d.conv_transpose3d(x, tensors["up1.weight"]))
    run(*call, "--name", "up2.weight", "--overwrite")
    whole = tconv3d.conv_transpose3d(x, tensors["up2.weight"].astype("f4"))[0]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), whole[None])
    assert "argument of mindspore's contract" in refusal(capsys, *call, "--name", "up1", "--pad-mode", "same")
    assert "2" in refusal(capsys, *call, "--name", "up1", "--groups", 3, "--overwrite")


def test_a_large_process_is_refused_by_its_own_limit_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --memory what a process holds already, such as the notebook that calls, does not count."""
    for module in (streaming, plan):
        monkeypatch.setattr(module, "held", lambda: 10**11)
    write(tmp_path / "x.npy", np.zeros((4, 5, 6), np.float32))
    arguments = ["upsample", str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "--scale", "2"]
    assert "is too low" in refusal(capsys, *arguments, "--memory", "2GB")
    assert main(arguments) == 0
