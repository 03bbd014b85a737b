# SPDX-License-Identifier: Apache-2.0
"""Where voxels lie after a layer, and what a format keeps, seen through the formats' own libraries."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import zarr

import tconv3d
from tconv3d.cli import main

AFFINE = np.array([[-1.5, 0.2, 0, 90], [0.1, 2, 0.3, -126], [0, -0.4, 2.5, -72], [0, 0, 0, 1]])


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("sform", "qform"), [(4, 0), (0, 1), (2, 1), (0, 0)])
def test_anatomy_stays_in_place(sform: int, qform: int, suffix: str, tmp_path: Path) -> None:
    """The world is a smooth function; every new voxel must hold its value at the place that the new affine tells."""
    affine = AFFINE if sform and not qform else np.diag([-2.0, 2, 2.5, 1]) @ np.eye(4)
    image = nibabel.Nifti1Image(np.zeros((20, 18, 22), "f4"), affine)
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine if qform else None, qform)
    image = nibabel.Nifti1Image(np.zeros((20, 18, 22), "f4"), None, image.header)
    world = image.header.get_best_affine()
    point = world @ (9, 8, 11, 1)

    def field(matrix: Any, shape: tuple[int, ...]) -> Any:
        place = np.tensordot(matrix, np.stack([*np.indices(shape), np.ones(shape)]), 1)[:3]
        return (place * [[[[1.0]]], [[[2.0]]], [[[-1.0]]]]).sum(0) + point[0]  # linear: interpolation is exact

    data = field(world, (20, 18, 22)).astype("f4")
    image = nibabel.Nifti1Image(data, None, image.header)
    nibabel.save(image, tmp_path / f"x{suffix}")
    run("upsample", tmp_path / f"x{suffix}", tmp_path / f"y{suffix}", "--scale", "2,3,1")
    after = nibabel.load(tmp_path / f"y{suffix}")
    assert after.shape == (40, 54, 22)
    assert (int(after.header["sform_code"]), int(after.header["qform_code"])) == (sform, qform)
    inner = np.s_[2:-2, 3:-3, 1:-1]
    np.testing.assert_allclose(after.get_fdata()[inner], field(after.affine, after.shape)[inner], rtol=1e-4, atol=2e-3)
    steps = np.sqrt((world[:3, :3] ** 2).sum(0)) / (2, 3, 1)
    np.testing.assert_allclose(after.header.get_zooms(), steps, rtol=1e-5)
    edges = [matrix @ (-0.5, -0.5, -0.5, 1) for matrix in (world, after.affine)]
    np.testing.assert_allclose(*edges, atol=1e-3)  # the volume keeps its corner


def test_two_matrices_keep_their_own_codes_and_places(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), "i2"), AFFINE)
    other = np.diag([2.0, 3, 4, 1])
    image.set_sform(AFFINE, 4)
    image.set_qform(other, 1)
    nibabel.save(image, tmp_path / "x.nii")
    run("upsample", tmp_path / "x.nii", tmp_path / "y.nii", "--scale", 2)
    header = nibabel.load(tmp_path / "y.nii").header
    half = np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    np.testing.assert_allclose(header.get_sform(), AFFINE @ half, atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), other @ half, atol=1e-5)
    assert (header["sform_code"], header["qform_code"]) == (4, 1)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (4, 2, 1), (2, 2, 0), (5, 3, 1), (3, 1, 1)]
)
def test_apply_moves_the_origin_by_crop_and_kernel(kernel: int, stride: int, padding: int, tmp_path: Path) -> None:
    """A point in the input becomes a blob around the same place of the world."""
    x = np.zeros((9, 9, 9), "f4")
    x[4, 5, 3] = 1
    nibabel.save(nibabel.Nifti1Image(x, AFFINE), tmp_path / "x.nii")
    np.save(tmp_path / "w.npy", np.ones((1, 1, kernel, kernel, kernel), "f4"))
    options = ["--contract", "torch", "--stride", stride, "--padding", padding]
    run("apply", tmp_path / "w.npy", tmp_path / "x.nii", tmp_path / "y.nii", *options)
    image = nibabel.load(tmp_path / "y.nii")
    middle = np.argwhere(image.get_fdata()).mean(0)
    np.testing.assert_allclose(image.affine @ (*middle, 1), AFFINE @ (4, 5, 3, 1), atol=1e-4)


def test_stored_integers_keep_their_factor_and_real_values_are_convolved_where_it_matters(tmp_path: Path) -> None:
    real = np.random.default_rng(0).random((5, 6, 7)) * 100
    image = nibabel.Nifti1Image(real, np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "x.nii")
    before = nibabel.load(tmp_path / "x.nii")
    run("upsample", tmp_path / "x.nii", tmp_path / "y.nii", "--scale", 2)
    after = nibabel.load(tmp_path / "y.nii")
    assert after.get_data_dtype() == np.int16
    assert (after.dataobj.slope, after.dataobj.inter) == (before.dataobj.slope, before.dataobj.inter)
    run("upsample", tmp_path / "x.nii", tmp_path / "z.nii", "--scale", 2, "--dtype", "float64")
    wide = nibabel.load(tmp_path / "z.nii")
    assert (wide.dataobj.slope, wide.dataobj.inter) == (1, 0)
    np.testing.assert_allclose(after.get_fdata(), wide.get_fdata(), atol=before.dataobj.slope * 0.51)
    weight = np.random.default_rng(1).standard_normal((1, 1, 2, 2, 2))
    np.save(tmp_path / "w.npy", weight)
    run("apply", tmp_path / "w.npy", tmp_path / "x.nii", tmp_path / "a.nii", "--contract", "torch")
    expected = tconv3d.conv_transpose3d(before.get_fdata()[None], weight)[0]
    layer = nibabel.load(tmp_path / "a.nii")
    assert layer.get_data_dtype() == np.float32
    np.testing.assert_allclose(layer.get_fdata(), expected, rtol=1e-5, atol=1e-4)


def test_four_axes_units_and_foreign_extensions_stay(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((4, 5, 6, 3)).astype(">f4")
    image = nibabel.Nifti1Image(data, AFFINE, nibabel.Nifti1Header(endianness=">"))
    image.header.set_zooms((1.5, 2, 2.5, 0.8))
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"of a study"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept"))
    nibabel.save(image, tmp_path / "x.nii")
    run("upsample", tmp_path / "x.nii", tmp_path / "y.nii", "--scale", "1,2,2")
    after = nibabel.load(tmp_path / "y.nii")
    assert after.shape == (4, 10, 12, 3)
    assert after.header.get_zooms()[3] == pytest.approx(0.8)
    assert after.header.get_xyzt_units() == ("mm", "sec")
    assert after.header["descrip"].item() == b"of a study"
    contents = [bytes(each.get_content()).strip() for each in after.header.extensions]
    assert contents[0].strip(b"\0") == b"kept"
    assert contents[1].startswith(b"tconv3d complete sha256:")
    run("upsample", tmp_path / "y.nii", tmp_path / "z.nii", "--scale", "2")
    assert len(nibabel.load(tmp_path / "z.nii").header.extensions) == 2


def test_nifti_2_stays_nifti_2(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(np.ones((4, 5, 6), "f4"), AFFINE), tmp_path / "x.nii.gz")
    run("upsample", tmp_path / "x.nii.gz", tmp_path / "y.nii.gz", "--scale", "2")
    after = nibabel.load(tmp_path / "y.nii.gz")
    assert isinstance(after, nibabel.Nifti2Image)
    np.testing.assert_allclose(after.get_fdata(), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.nii.gz", "y.nii.gz"]


def test_a_damaged_packed_file_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((9, 9, 9)), AFFINE), tmp_path / "x.nii.gz")
    whole = bytearray((tmp_path / "x.nii.gz").read_bytes())
    for damaged in (whole[:-9], whole[:-5] + b"\0" + whole[-4:], whole[:900] + b"\0\0" + whole[902:]):
        (tmp_path / "x.nii.gz").write_bytes(damaged)
        assert main(["upsample", str(tmp_path / "x.nii.gz"), str(tmp_path / "y.nii"), "--scale", "2"]) == 2
        assert "x.nii.gz is damaged" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["x.nii.gz"]
    assert gzip.decompress(bytes(whole))


def ome(path: Path, data: Any, zarr_format: int) -> None:
    """An image of two resolutions, as the specification's versions 0.4 and 0.5 have it."""
    axes = [
        {"name": "c", "type": "channel"},
        *({"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"),
    ]
    datasets = [
        {"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [1, 4, 0.5, 0.25]}]},
        {
            "path": "s1",
            "coordinateTransformations": [
                {"type": "scale", "scale": [1, 8, 1, 0.5]}, {"type": "translation", "translation": [0, 2, 0.25, 0.125]},
            ],
        },
    ]  # fmt: skip
    version = "0.4" if zarr_format == 2 else "0.5"
    multiscales = [{"version": version, "name": "image", "axes": axes, "datasets": datasets}]
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    names = {"dimension_names": list("czyx")} if zarr_format == 3 else {}
    for dataset, array in (("s0", data), ("s1", data[:, ::2, ::2, ::2])):
        group.create_array(dataset, data=array, chunks=(1, 4, 4, 4), **names)
    omero = {"channels": [{"color": "FF0000"}]}
    attributes = {"multiscales": multiscales, "omero": omero}
    group.attrs.update(attributes if zarr_format == 2 else {"ome": {"version": "0.5", **attributes}})


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_ome_metadata_are_kept_and_rescaled(zarr_format: int, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 4000, (2, 6, 7, 9)).astype(np.uint16)
    ome(tmp_path / "x.zarr", data, zarr_format)
    run("upsample", tmp_path / "x.zarr", tmp_path / "y.zarr", "--scale", "2,2,4")
    group = zarr.open_group(str(tmp_path / "y.zarr"), mode="r")
    assert group.metadata.zarr_format == zarr_format
    attributes = dict(group.attrs)
    assert attributes["tconv3d"].startswith("complete sha256:")
    attributes = attributes.get("ome", attributes)
    (multiscale,) = attributes["multiscales"]
    assert attributes["omero"] == {"channels": [{"color": "FF0000"}]} and multiscale["name"] == "image"
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "z", "y", "x"]
    (dataset,) = multiscale["datasets"]
    scale, translation = dataset["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [1, 2, 0.25, 0.0625]}
    # Each axis starts at the old edge: (1/s - 1)/2 old steps before the old first centre.
    assert translation == {"type": "translation", "translation": [0, -1, -0.125, -0.09375]}
    array = group[dataset["path"]]
    assert (array.shape, array.dtype, array.chunks) == ((2, 12, 14, 36), np.uint16, (1, 12, 14, 36))
    if zarr_format == 3:
        assert array.metadata.dimension_names == ("c", "z", "y", "x")
    else:
        assert (tmp_path / "y.zarr" / "s0" / "0" / "0" / "0" / "0").is_file()
    np.save(tmp_path / "x.npy", data)
    run("upsample", tmp_path / "x.npy", tmp_path / "y.npy", "--scale", "2,2,4")
    np.testing.assert_array_equal(array[:], np.load(tmp_path / "y.npy"))


def test_a_layer_with_more_channels_brings_an_axis_for_them(tmp_path: Path) -> None:
    ome(tmp_path / "x.zarr", np.random.default_rng(0).random((1, 6, 7, 9)).astype("f4"), 3)
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="r+")
    attributes = dict(group.attrs)["ome"]
    multiscale = attributes["multiscales"][0]
    multiscale["axes"][0] = {"name": "t", "type": "time"}
    group.attrs["ome"] = attributes
    weight = np.random.default_rng(1).standard_normal((1, 3, 2, 2, 2)).astype("f4")
    np.save(tmp_path / "w.npy", weight)
    run("apply", tmp_path / "w.npy", tmp_path / "x.zarr", tmp_path / "y.zarr", "--contract", "torch", "--stride", 2)
    after = zarr.open_group(str(tmp_path / "y.zarr"), mode="r")
    (multiscale,) = after.attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["t", "c", "z", "y", "x"]
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] == [1, 1, 2, 0.25, 0.125]
    whole = tconv3d.conv_transpose3d(group["s0"][:][:, None][0], weight, stride=2)
    np.testing.assert_array_equal(after["s0"][:], whole[None])


def test_a_named_array_of_a_group_is_a_plain_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ome(tmp_path / "x.zarr", np.ones((2, 6, 7, 9), "f4"), 2)
    run("upsample", tmp_path / "x.zarr" / "s1", tmp_path / "y.zarr", "--scale", 2)
    array = zarr.open_array(str(tmp_path / "y.zarr"), mode="r")
    assert array.shape == (2, 6, 8, 10) and array.metadata.zarr_format == 2
    assert array.attrs["tconv3d"].startswith("complete sha256:")
    zarr.open_group(str(tmp_path / "bare.zarr"), mode="w")
    assert main(["upsample", str(tmp_path / "bare.zarr"), str(tmp_path / "z.zarr"), "--scale", "2"]) == 2
    assert "without OME-NGFF multiscales" in capsys.readouterr().err


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["imagej", "ome", "plain", "pages"])
def test_tiff_stacks_keep_kind_axes_and_steps(kind: str, compression: str | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    axes, shape = {"imagej": ("TZCYX", (2, 4, 3, 5, 6)), "ome": ("TCZYX", (2, 3, 4, 5, 6))}.get(
        kind, ("ZYX", (4, 5, 6))
    )
    data = rng.integers(0, 60000, shape).astype(np.uint16)
    metadata: dict[str, Any] = {"axes": axes}
    if kind == "ome":
        metadata |= {f"PhysicalSize{axis}": size for axis, size in zip("XYZ", (0.25, 0.5, 2.0), strict=True)}
        metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XYZ"}
    elif kind != "pages":
        metadata |= {"spacing": 2.0, "unit": "um"}
    resolution = {"resolution": (4.0, 2.0)} if kind in ("imagej", "plain") else {}
    tifffile.imwrite(
        tmp_path / "x.tif", data, photometric="minisblack", compression=compression, imagej=kind == "imagej",
        ome=kind == "ome", metadata=None if kind == "pages" else metadata, **resolution,
    )  # fmt: skip
    run("upsample", tmp_path / "x.tif", tmp_path / "y.tif", "--scale", "1,2,2")
    with tifffile.TiffFile(tmp_path / "y.tif") as file:
        series = file.series[0]
        assert series.axes == axes and (file.is_imagej, file.is_ome) == (kind == "imagej", kind == "ome")
        assert series.dtype == np.uint16
        if kind == "ome":
            for name, step in (("PhysicalSizeX", 0.125), ("PhysicalSizeY", 0.25), ("PhysicalSizeZ", 2.0)):
                assert f'{name}="{step}"' in file.ome_metadata
        elif kind != "pages":
            found = file.imagej_metadata or file.shaped_metadata[0]
            assert (found["spacing"], found["unit"]) == (2.0, "um")
            page = series.keyframe
            x, y = (page.tags[name].value for name in ("XResolution", "YResolution"))
            assert (x[0] / x[1], y[0] / y[1]) == (8.0, 4.0)
        after = series.asarray()
    np.save(tmp_path / "x.npy", np.moveaxis(data, axes.index("Z"), -3))
    run("upsample", tmp_path / "x.npy", tmp_path / "y.npy", "--scale", "1,2,2")
    np.testing.assert_array_equal(np.moveaxis(after, axes.index("Z"), -3), np.load(tmp_path / "y.npy"))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npy", ".npy", ".tconv3d", ".tif", ".tif"]


def test_colors_of_a_tiff_stay_together(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", data, photometric="rgb", metadata={"axes": "ZYXS"})
    run("upsample", tmp_path / "x.tif", tmp_path / "y.tif", "--scale", "2", "--kernel", "nearest")
    with tifffile.TiffFile(tmp_path / "y.tif") as file:
        assert file.series[0].axes == "ZYXS" and file.pages[0].photometric == tifffile.PHOTOMETRIC.RGB
        np.testing.assert_array_equal(file.asarray(), data.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_steps_survive_a_change_of_format(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((4, 5, 6)).astype("f4")
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1.0, 2, 3, 1])), tmp_path / "x.nii")
    run("upsample", tmp_path / "x.nii", tmp_path / "y.tif", "--scale", "2")
    run("upsample", tmp_path / "y.tif", tmp_path / "z.nii", "--scale", "1")
    image = nibabel.load(tmp_path / "z.nii")
    run("upsample", tmp_path / "x.nii", tmp_path / "y.nii", "--scale", "2")
    np.testing.assert_array_equal(image.get_fdata(), nibabel.load(tmp_path / "y.nii").get_fdata())
    np.testing.assert_allclose(image.header.get_zooms(), (0.5, 1, 1.5))
    ome(tmp_path / "x.zarr", np.ones((2, 4, 4, 4), "f4"), 3)
    run("upsample", tmp_path / "x.zarr", tmp_path / "o.nii", "--scale", "2")
    image = nibabel.load(tmp_path / "o.nii")
    assert image.header.get_zooms() == (0.125, 0.25, 2.0, 1.0) and image.shape == (8, 8, 8, 2)
    np.testing.assert_allclose(image.affine[:3, 3], (-0.0625, -0.125, -1))
    assert image.header.get_xyzt_units()[0] == "micron"
