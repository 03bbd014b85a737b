# SPDX-License-Identifier: Apache-2.0
"""`tconv3d verify` on the real frameworks: causes in words, networks layer by layer, the comparison page re-proved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tconv3d.cli import main
from tconv3d.migrate import RequestError, page, table
from tconv3d.migrate.probes import Frameworks
from tconv3d.migrate.verify import report
from tconv3d.migrate.verify.compare import verify

SHAPE = (1, 3, 4, 5, 6)
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("nn.ConvTranspose3d(3, 4, 5, stride=3, padding=1, bias=False)", "nn.Conv3dTranspose(3, 4, 5, stride=3)"),
        ("nn.ConvTranspose3d(3, 4, 3, 2, bias=False)[..., :-1, :-1, :-1]", "nn.Conv3dTranspose(3, 4, 3, 2)"),
        ("nn.ConvTranspose3d(3, 6, 4, 2, 1, groups=3)", "nn.Conv3dTranspose(3, 6, 4, 2, group=3, has_bias=True)"),
        ("nn.ConvTranspose3d(3, 4, 3, 2)", "tconv3d.ConvTranspose3d(3, 4, 3, 2)"),
        ("nn.Conv3dTranspose(3, 4, 2, 3, 'valid')", "tconv3d.Conv3dTranspose(3, 4, 2, 3, 'valid')"),
    ],
)
def test_equal_layers(a: str, b: str) -> None:
    found = verify(a, b, [SHAPE])
    assert found.equal and 0 <= found.rows[0].difference <= found.rows[0].tolerance < 1e-3 * found.rows[0].largest


@pytest.mark.parametrize(
    ("a", "b", "cause"),
    [
        ("nn.ConvTranspose3d(3, 4, 5, stride=3, padding=2, output_padding=2, bias=False)",
         "nn.Conv3dTranspose(3, 4, 5, stride=3)",
         "crop side: (2, 2, 2) and (1, 1, 1) samples are cut in front; crop side: the two agree where they overlap"),
        ("nn.ConvTranspose3d(3, 4, 4, 2, 1)", "nn.Conv3dTranspose(3, 4, 4, 2)", "default bias: one of the two"),
        ("nn.ConvTranspose3d(3, 4, 3, bias=False)", "nn.Conv3dTranspose(3, 4, 3)", "spatial sizes are (6, 7, 8) and"),
        ("nn.ConvTranspose3d(3, 4, 3, dilation=2)", "nn.Conv3dTranspose(3, 4, 3, dilation=2)", "dilation limit"),
        ("nn.ConvTranspose3d(3, 4, 8)", "nn.Conv3dTranspose(3, 4, 8)", "343"),
        ("nn.ConvTranspose3d(3, 4, 3, dtype=torch.float64, bias=False)",
         "nn.Conv3dTranspose(3, 4, 3, pad_mode='pad', dtype=mindspore.float64)", "dtype"),
    ],
)  # fmt: skip
def test_known_causes(a: str, b: str, cause: str) -> None:
    found = verify(a, b, [SHAPE])
    assert not found.equal and cause in found.rows[0].cause


def test_the_place_of_the_largest_difference_and_the_three_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (
        "nn.ConvTranspose3d(3, 4, 5, stride=3, padding=2, output_padding=2, bias=False)",
        "nn.Conv3dTranspose(3, 4, 5, 3)",
    )
    files = ["--json", str(tmp_path / "x.json"), "--html", str(tmp_path / "x.html")]
    assert main(["verify", a, b, "--input", "1,3,4,5,6", *files]) == 1
    out = capsys.readouterr().out
    row = json.loads((tmp_path / "x.json").read_text())["rows"][0]
    place, difference = row["place"], row["difference"]
    assert "DIFFERENT" in out and str(tuple(place)) in out
    assert [row["profiles"][axis][n] for axis, n in zip(row["profiles"], place, strict=True)] == [difference] * 5
    html = (tmp_path / "x.html").read_text()
    assert html.count("<svg") == 5 and "crop side" in html
    assert not any(word in html for word in ("http", "<script", "src="))


def test_an_html_page_escapes_what_it_shows() -> None:
    row = report.Row("<b>x</b>", ((1,),), False, float("inf"), 0.0, 0.0, (0,), "<i>", {"width": [float("inf")]})
    text = report.as_html(report.Report("<script>", "&", [row], ["<u>"]))
    assert "<script>" not in text and "<b>" not in text and "<i>" not in text and "<u>" not in text
    json.loads(report.as_json(report.Report("a", "b", [row], [])), parse_constant=pytest.fail)


NETWORKS = """
import mindspore.nn as ms
import torch
from torch import nn


class Torch(nn.Module):
    def __init__(self, padding=1):
        super().__init__()
        self.up = nn.ConvTranspose3d(2, 4, 4, 2, padding)
        self.norm = nn.BatchNorm3d(4)
        self.act = nn.PReLU(4)
        self.head = nn.Conv3d(4, 1, 1)

    def forward(self, x):
        return self.head(self.act(self.norm(self.up(x))))


class MindSpore(ms.Cell):
    def __init__(self):
        super().__init__()
        self.up = ms.Conv3dTranspose(2, 4, 4, 2, has_bias=True)
        self.norm = ms.BatchNorm3d(4)
        self.act = ms.PReLU(4)
        self.head = ms.Conv3d(4, 1, 1, pad_mode="pad", has_bias=True)

    def construct(self, x):
        return self.head(self.act(self.norm(self.up(x))))


def wrong():
    return Torch(padding=(1, 1, 0))


def other():
    return nn.Linear(2, 2)
"""


def test_networks_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "verify_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    for a, b in (("Torch", "MindSpore"), ("MindSpore", "Torch")):
        found = verify(f"verify_networks:{a}", f"verify_networks:{b}", [(2, 2, 3, 3, 3)])
        assert found.equal and [row.name for row in found.rows] == ["up", "norm", "act", "head", "output 0"]
    found = verify("verify_networks:wrong", "verify_networks:MindSpore", [(2, 2, 3, 3, 3)])
    assert not found.rows[0].equal and "crop" in found.rows[0].cause
    with pytest.raises(RequestError):
        verify("verify_networks:other", "verify_networks:MindSpore", [(2, 2, 3, 3, 3)])


@pytest.mark.parametrize(
    "arguments",
    [
        ["nn.ConvTranspose3d(3, 4, 3)"],
        ["nn.ConvTranspose3d(3, 4, 3)", "nn.Conv3dTranspose(3, 4, 3)"],
        ["nn.ConvTranspose3d(3, 4, 3)", "nn.Conv3dTranspose(3, 4, 5)", "--input", "1,3,4,5,6"],
        ["nn.ConvTranspose3d(3, 4, 3)", "os:getcwd", "--input", "1,3,4,5,6"],
        ["nn.ConvTranspose3d(3, 4, 3)[open('x')]", "nn.Conv3dTranspose(3, 4, 3)", "--input", "1,3,4,5,6"],
    ],
)
def test_requests_that_make_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *arguments]) == 2
    assert capsys.readouterr().err.startswith("tconv3d verify: error: ")


# The comparison page.


@pytest.fixture(scope="module")
def frameworks() -> Frameworks:
    return Frameworks()


def test_every_statement_of_the_page_has_its_verdict(frameworks: Frameworks) -> None:
    found = page.proved(frameworks)
    places = [statement.place for statement, _, _ in found]
    assert places.count("signature") == 2 and places.count("formula") == 3
    assert [place for place in places if place.startswith("table")] == [f"table {n}" for n in range(1, 16)]
    assert sum("prints" in statement.text for statement, _, _ in found) == 4
    assert not [statement.text for statement, _, evidence in found if "the probe failed" in evidence]
    verdicts = {statement.text: verdict for statement, verdict, _ in found}
    assert verdicts["C is the spatial dimension"] == verdicts["dilation: no difference"] == page.NOT_TRUE
    assert verdicts["without padding, a stride > 1 may drop data"] == page.NOT_TRUE
    shape_only = [text for text, verdict in verdicts.items() if verdict == page.SHAPE_ONLY]
    assert shape_only == ["padding=(kernel_size-1)/2, output_padding=stride-1 for pad_mode='same': the same options"]
    no_longer = [
        text.partition("(")[0].partition(":")[0] for text, verdict in verdicts.items() if verdict == page.NO_LONGER
    ]
    assert no_longer == ["torch.nn.ConvTranspose3d", "mindspore.nn.Conv3dTranspose", "weight_init", "bias_init"]


def test_every_difference_holds_and_the_documentation_is_theirs(frameworks: Frameworks) -> None:
    assert [row.number for row in table.TABLE] == list(range(1, 33))
    assert [row.topic for row, holds, _ in table.probed(frameworks) if not holds] == []
    assert (ROOT / "docs" / "differences.md").read_text(encoding="utf-8") == table.as_markdown(frameworks)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--page", "--json", str(tmp_path / "x.json")]) == 0
    out = capsys.readouterr().out
    assert "42 statements: 28 true, 6 incomplete, 1 shape only, 4 no longer, 3 not true" in out
    assert "32 differences of the two layers are probed, 32 hold" in out
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert len(content["page"]) == 42 and len(content["differences"]) == 32
