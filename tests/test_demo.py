# SPDX-License-Identifier: Apache-2.0
"""`tconv3d demo`: the page's examples and the brain volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tconv3d import reference
from tconv3d.commands import CommandError, _brain, demo
from tconv3d.commands._upsample import upsample, upsampled_affine
from tconv3d.geometry import Geometry

OBLIQUE = np.array([[-2.0, 0.3, 0.1, 32.0], [0.2, 1.5, -0.4, -40.0], [0.0, 0.5, 3.0, -16.0], [0, 0, 0, 1]])


# The page's examples.


def test_example_1_differs_and_its_true_equal_does_not() -> None:
    result = demo.example_1(*demo.random_data())
    assert result.as_expected
    assert result.text.count("shape (1, 32, 12, 27, 48)") == 2
    assert "The true equal of 'same' here is ConvTranspose3d(3, 32, kernel_size=5, stride=3, padding=1" in result.text


def test_example_2_is_equal() -> None:
    result = demo.example_2(*demo.random_data())
    assert result.as_expected
    assert result.text.count("shape (1, 32, 14, 29, 50)") == 2
    assert "0 of 649,600 samples differ" in result.text


def test_printed_sums_are_those_of_the_definition() -> None:
    x, weight = demo.random_data()
    text = demo.example_1(x, weight).text
    for front in (2, 1):
        window = Geometry((4, 9, 16), (5,) * 3, (3,) * 3, (1,) * 3, (front,) * 3, (12, 27, 48), groups=1)
        total = reference.forward(x, weight, None, window).sum()
        printed = [float(line.rpartition("sum ")[2]) for line in text.splitlines() if "shape (" in line]
        assert printed[2 - front] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("break_it", ["example_1", "example_2"])
def test_an_unexpected_result_fails_the_command(break_it: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, break_it, lambda x, weight: demo.Result("", as_expected=False))
    monkeypatch.setattr(_brain, "run", lambda path, output_dir: True)
    assert demo.run(None, Path()) == 1


# The arithmetic of upsampling.


def test_upsample_doubles_a_ramp_and_keeps_anatomy_in_place() -> None:
    """A value that is linear in the world position stays so: at each new voxel's own position, off the border."""
    affine = OBLIQUE
    volume = _world_ramp((5, 6, 7), affine)
    inside = (slice(1, -1),) * 3
    after = upsample(volume)
    expected = _world_ramp((10, 12, 14), upsampled_affine(affine))
    np.testing.assert_allclose(after[inside], expected[inside], atol=1e-4)


def test_upsampled_affine_keeps_the_outer_corners() -> None:
    shape = np.array([5, 6, 7])
    for corner in (np.zeros(3), shape):
        before = OBLIQUE @ [*(corner - 0.5), 1]
        after = upsampled_affine(OBLIQUE) @ [*(2 * corner - 0.5), 1]
        np.testing.assert_allclose(after, before)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 2), (3, 5, 4)])
def test_upsample_is_scipys_linear_zoom(shape: tuple[int, int, int]) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    volume = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = ndimage.zoom(volume, 2, order=1, grid_mode=True, mode="nearest")
    np.testing.assert_allclose(upsample(volume), expected, atol=1e-6)


def _world_ramp(shape: tuple[int, int, int], affine: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x, y, z = np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3].reshape(3, 1, 1, 1)
    return np.asarray(x + 2 * y - 3 * z)


# The volume.


def test_the_brain_is_written_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nibabel, image_module = pytest.importorskip("nibabel"), pytest.importorskip("matplotlib.image")
    pytest.importorskip("scipy")
    assert _brain.run(None, tmp_path / "new")
    printed = capsys.readouterr().out
    assert "(33, 41, 25) -> (66, 82, 50)" in printed and "equal up to rounding" in printed
    written = nibabel.load(tmp_path / "new" / "anatomical_x2.nii")
    assert (written.shape, written.get_data_dtype().newbyteorder("=")) == ((66, 82, 50), np.float32)
    # The brain's affine is diag(-2, 2, 2) from (32, -40, -16): a quarter of a 2 mm voxel is 0.5 mm.
    expected = [[-1, 0, 0, 32.5], [0, 1, 0, -40.5], [0, 0, 1, -16.5], [0, 0, 0, 1]]
    np.testing.assert_array_equal(written.affine, expected)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (2, 2)
    picture = image_module.imread(tmp_path / "new" / "anatomical_x2.png")
    assert picture[..., :3].std() > 0.1


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    nibabel = pytest.importorskip("nibabel")

    def save(values: np.ndarray[Any, Any], name: str = "scan.nii.gz", kind: str = "Nifti1Image") -> Path:
        path = tmp_path / name
        nibabel.save(getattr(nibabel, kind)(values, OBLIQUE), path)
        return path

    return save


@pytest.mark.parametrize(
    ("name", "kind"), [("scan.nii", "Nifti1Image"), ("scan.nii.gz", "Nifti2Image"), ("scan.mgz", "MGHImage")]
)
def test_a_named_volume_of_any_format_is_taken(name: str, kind: str, save: Callable[..., Path]) -> None:
    import nibabel

    values = np.random.default_rng(2).integers(0, 100, (4, 3, 5)).astype(np.int16)
    path = save(values, name, kind)
    assert _brain.run(path, path.parent)
    written = nibabel.load(path.parent / "scan_x2.nii")
    np.testing.assert_allclose(written.affine, upsampled_affine(OBLIQUE), atol=1e-5)
    np.testing.assert_allclose(written.get_fdata(), upsample(values), atol=1e-4)


def test_a_last_axis_of_one_is_dropped(save: Callable[..., Path]) -> None:
    path = save(np.ones((3, 4, 5, 1), np.float32))
    assert _brain.run(path, path.parent)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 4, 5, 2), np.float32), "takes one volume"),
        (np.ones((3, 4), np.float32), "takes one volume"),
        (np.full((3, 4, 5), np.nan, np.float32), "NaN"),
    ],
)
def test_a_volume_that_cannot_be_used_says_why(
    values: np.ndarray[Any, Any], message: str, save: Callable[..., Path]
) -> None:
    path = save(values)
    with pytest.raises(CommandError, match=message):
        _brain.run(path, path.parent)
    assert not (path.parent / "scan_x2.nii").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("missing.nii", None), ("text.nii", b"not a volume"), ("cut.nii.gz", b"\x1f\x8b\x08"), ("notes.txt", b"notes")],
)
def test_a_bad_file_is_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CommandError, match=name):
        _brain.run(tmp_path / name, tmp_path)


def test_an_affine_of_zeros_is_refused(save: Callable[..., Path]) -> None:
    path = save(np.ones((3, 4, 5), np.float32), "scan.nii")
    content = bytearray(path.read_bytes())
    content[280:328] = bytes(48)  # srow_x, srow_y, srow_z of a NIfTI-1 header
    path.write_bytes(content)
    with pytest.raises(CommandError, match="where its voxels lie"):
        _brain.run(path, path.parent)


def test_a_truncated_volume_is_named(save: Callable[..., Path]) -> None:
    path = save(np.ones((9, 9, 9), np.float32), "scan.nii")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CommandError, match=r"scan\.nii cannot be read"):
        _brain.run(path, path.parent)


def test_an_output_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    blocked = tmp_path / "blocked"
    blocked.touch()
    with pytest.raises(CommandError, match="cannot write to"):
        _brain.run(None, blocked)


# Missing libraries.


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(__import__("sys").modules, name, None)


def test_without_nibabel_the_demo_says_what_to_install_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "nibabel", "scipy", "scipy.ndimage", "matplotlib", "matplotlib.figure")
    assert demo.run(None, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "Example 2" in printed
    assert "nibabel is missing. pip install 'tconv3d[demo]'" in printed
    assert not list(tmp_path.iterdir())


def test_a_named_volume_without_nibabel_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(monkeypatch, "nibabel")
    with pytest.raises(CommandError, match=r"pip install 'tconv3d\[demo\]'"):
        _brain.run(tmp_path / "scan.nii", tmp_path)


def test_without_scipy_and_matplotlib_the_volume_is_still_written(
    monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(np.ones((3, 4, 5), np.float32))
    without(monkeypatch, "scipy.ndimage", "matplotlib.figure")
    assert _brain.run(path, path.parent)
    printed = capsys.readouterr().out
    assert "not checked: SciPy is missing" in printed and "no picture: matplotlib is missing" in printed
    assert (path.parent / "scan_x2.nii").exists() and not (path.parent / "scan_x2.png").exists()
