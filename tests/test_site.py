# SPDX-License-Identifier: Apache-2.0
"""The documentation as a browser sees it: built strictly, each page opened in headless Chromium, arithmetic checked.

Asked for by name, `pytest -m site`: it needs the extra `docs` and Chromium (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import functools
import http.server
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin, urlparse

import pytest

from tconv3d.cli import main
from tconv3d.commands import _overlap
from tconv3d.contracts import mindspore, pytorch
from tconv3d.geometry import Geometry
from tconv3d.migrate.differences import differences
from tconv3d.migrate.equal import EqualCall, pad_modes, to_mindspore, to_pytorch
from tconv3d.migrate.layer import resolve
from tconv3d.migrate.signature import parse_layer

pytestmark = pytest.mark.site

ROOT = Path(__file__).parent.parent
CASES = 1500
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # MkDocs' own theme announces its end on every build; that is no warning about these pages.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "no Chromium on this machine: apt-get install chromium"
    with sync_playwright() as playwright:
        # Chromium's sandbox does not start as root, as in most containers. All pages are ours.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site on a server, as it would be read when published."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Visit:
    """A page of the browser that keeps everything that went wrong on it, and every address it asked for."""

    def __init__(self, browser: Any, viewport: dict[str, int] = DESK) -> None:
        self.page = browser.new_page(viewport=viewport)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", self._note_failure)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _note_failure(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left while its icon was under way
            self.problems.append(f"failed: {request.url} {request.failure}")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: Any) -> None:
        self.page.close()


def pages(site: Path) -> list[str]:
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))


# Every page.


@dataclass
class Seen:
    """What one round through the site found, by the address of the page."""

    links: dict[str, set[str]] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)
    unseen: dict[str, list[str]] = field(default_factory=dict)  # pictures that did not load
    too_wide: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


LOOK = """() => ({
  links: [...document.querySelectorAll("a[href]")].map(a => a.getAttribute("href")),
  pictures: [...document.querySelectorAll("img")].map(i => i.getAttribute("src")),
  unseen: [...document.querySelectorAll("img")].filter(i => !i.naturalWidth).map(i => i.src),
  names: [...document.querySelectorAll("[id]")].map(e => e.id),
})"""


@pytest.fixture(scope="module")
def seen(site: Path, address: str, browser: Any) -> Seen:
    """Every page once, on a wide screen and on a phone's."""
    found = Seen()
    with Visit(browser) as visit:
        for page in pages(site):
            url = address + page
            visit.page.set_viewport_size(DESK)
            visit.page.goto(url)
            look = visit.page.evaluate(LOOK)
            found.links[url] = {*look["links"], *look["pictures"]}
            found.names[url], found.unseen[url] = set(look["names"]), look["unseen"]
            for viewport in (DESK, PHONE):
                visit.page.set_viewport_size(viewport)
                if visit.page.evaluate("document.documentElement.scrollWidth") > viewport["width"]:
                    found.too_wide.append(f"{page} on {viewport['width']} pixels")
        visit.page.wait_for_load_state("networkidle")
        found.problems, found.requests = visit.problems, visit.requests
    return found


def test_no_page_complains_and_none_asks_another_server(seen: Seen, address: str) -> None:
    assert len(seen.links) >= 13
    assert seen.problems == []
    assert {url for url in seen.requests if not url.startswith((address, "data:", "blob:"))} == set()


def test_every_picture_is_seen_and_no_page_is_wider_than_its_screen(seen: Seen) -> None:
    assert {page: pictures for page, pictures in seen.unseen.items() if pictures} == {}
    assert seen.too_wide == []


def test_every_link_leads_somewhere_and_every_anchor_exists(seen: Seen, site: Path, address: str) -> None:
    dead = []
    for url, hrefs in seen.links.items():
        for target, anchor in (urldefrag(urljoin(url, href)) for href in hrefs):
            if not target.startswith(address):
                continue  # another site: never loaded by itself, and not ours to test
            page = f"{target}index.html" if target.endswith("/") else target
            if not (site / urlparse(page).path.lstrip("/")).is_file() or (anchor and anchor not in seen.names[page]):
                dead.append(f"{url} -> {target}#{anchor}")
    assert dead == []


def test_no_page_complains_when_read_from_files(site: Path, browser: Any) -> None:
    with Visit(browser) as visit:
        for page in pages(site):
            if page != "404.html":  # a server's page: its addresses begin at the root
                visit.page.goto((site / page).as_uri())
        assert visit.problems == []
        assert {url for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))} == set()


def test_the_report_of_verify_opens_without_a_complaint_and_loads_nothing(tmp_path: Path, browser: Any) -> None:
    layers = ["tconv3d.ConvTranspose3d(3, 8, 5, 3, 2, 2, bias=False)", "tconv3d.Conv3dTranspose(3, 8, 5, 3)"]
    report = tmp_path / "report.html"
    assert main(["verify", *layers, "--input", "1,3,4,5,6", "--html", str(report)]) == 1
    for viewport in (PHONE, DESK):
        with Visit(browser, viewport) as visit:
            visit.page.goto(report.as_uri())
            assert visit.problems == []
            assert visit.requests == [report.as_uri()]
            assert visit.page.locator("h1").inner_text() == "different"
            assert visit.page.locator("figure svg").count() >= 3


# The page "Try it".


def calls() -> list[dict[str, Any]]:
    """Calls of both contracts; one in some is refused."""
    random.seed(20240)

    def three(low: int, high: int) -> list[int]:
        return [random.randint(low, high)] * 3 if random.random() < 0.5 else random.choices(range(low, high + 1), k=3)

    found = []
    for number in range(CASES):
        call: dict[str, Any] = {
            "size": three(1, 6),
            "kernel": three(1, 8 if number % 5 == 0 else 5),
            "stride": three(1, 4),
            "dilation": random.choice(([1, 1, 1], three(1, 4))),
            "outputPadding": random.choice(([0, 0, 0], three(0, 3))),
        }
        if number % 2:
            call |= {"contract": "pytorch", "padding": three(0, 4)}
        else:
            mode = random.choice(("same", "valid", "pad", "pad"))
            padded = mode == "pad" or random.random() < 0.05
            padding = three(0, 3) + three(0, 3) if padded else [0] * 6
            extra = call["outputPadding"] if padded else [0] * 3
            call |= {"contract": "mindspore", "padMode": mode, "padding": padding, "outputPadding": extra}
        found.append(call)
    # What is wide enough for the limits of MindSpore's own layer, which the contracts lack.
    found.append(
        {**found[1], "stride": [300, 1, 1], "kernel": [1, 8, 8], "padding": [0, 0, 0], "outputPadding": [0] * 3}
    )
    return found


def expected(call: dict[str, Any]) -> dict[str, Any]:
    """What the library says to a call: the error, or everything that the page shows."""
    torch = call["contract"] == "pytorch"
    sizes = {name: tuple(call[name]) for name in ("size", "kernel", "stride", "dilation", "padding", "outputPadding")}
    try:
        if torch:
            arguments: Any = pytorch.layer_arguments(
                1, 1, sizes["kernel"], sizes["stride"], sizes["padding"], sizes["outputPadding"], 1, False,
                sizes["dilation"],
            )  # fmt: skip
        else:
            arguments = mindspore.layer_arguments(
                1, 1, sizes["kernel"], sizes["stride"], call["padMode"], sizes["padding"], sizes["dilation"], 1,
                sizes["outputPadding"],
            )  # fmt: skip
        g = arguments.geometry((1, 1, *sizes["size"]))
    except (ValueError, RuntimeError) as error:
        return {"error": {"type": type(error).__name__, "message": str(error)}}
    return {
        "axes": [axis_of(g, axis) for axis in range(3)],
        "pytorch": written(to_pytorch(g)),
        "mindspore": written(to_mindspore(g)) if torch else None,
        "modes": pad_modes(g),
        "limits": limits(call, g),
    }


def axis_of(g: Geometry, axis: int) -> dict[str, Any]:
    names = {
        "size": g.input_size, "kernel": g.kernel_size, "stride": g.stride, "dilation": g.dilation,
        "effective": g.effective_kernel, "full": g.full_size, "front": g.crop_front, "out": g.output_size,
    }  # fmt: skip
    sources = [[list(pair) for pair in g.sources(axis, output)] for output in range(g.output_size[axis])]
    return {name: value[axis] for name, value in names.items()} | {
        "sources": sources,
        "cause": _overlap.cause(g, axis),
    }


def written(equal: EqualCall) -> dict[str, Any]:
    arguments = [[name, list(value) if isinstance(value, tuple) else value]
                 for name, value in equal.geometry_arguments.items()]  # fmt: skip
    return {"arguments": arguments, "slice": equal.slice_text}


def limits(call: dict[str, Any], g: Geometry) -> list[str]:
    """What `tconv3d explain` says that MindSpore refuses, without the frame of the sentence."""
    words = {"kernel": "kernel_size", "stride": "stride", "dilation": "dilation", "outputPadding": "output_padding"}
    arguments = ", ".join(f"{word}={tuple(call[name])}" for name, word in words.items())
    layer = f"nn.ConvTranspose3d(1, 1, {arguments}, padding={tuple(call['padding'])})"
    if call["contract"] == "mindspore":
        layer = f"nn.Conv3dTranspose(1, 1, {arguments}, padding={tuple(call['padding'])}, pad_mode={call['padMode']!r})"
    found = differences(resolve(parse_layer(layer), (1, 1, *g.input_size)))
    frame = re.compile(r"MindSpore refuses (.*); tconv3d\.Conv3dTranspose computes it\.")
    return [match[1] for sentence in found if (match := frame.fullmatch(sentence))]


SEEN = """calls => calls.map(call => {
  const { axes, error } = tconv3d.resolve(call);
  if (error) return { error };
  const torch = call.contract === "pytorch";
  return {
    axes: axes.map(axis => ({
      ...axis,
      sources: Array.from({ length: axis.out }, (_, output) => tconv3d.sources(axis, output)),
      cause: tconv3d.cause(axis),
    })),
    pytorch: tconv3d.toPytorch(axes),
    mindspore: torch ? tconv3d.toMindspore(axes) : null,
    modes: tconv3d.padModes(axes),
    limits: tconv3d.limits(axes, torch ? axes.map(tconv3d.missing) : call.outputPadding),
  };
})"""


def test_the_pages_arithmetic_is_the_librarys(address: str, browser: Any) -> None:
    wanted = [expected(call) for call in calls()]
    with Visit(browser) as visit:
        visit.page.goto(address + "try.html")
        seen = visit.page.evaluate(SEEN, calls())
    for call, ours, theirs in zip(calls(), wanted, seen, strict=True):
        assert theirs == ours, call
    refused = [case["error"]["type"] for case in wanted if "error" in case]
    assert 100 < len(refused) < 900 and set(refused) == {"RuntimeError", "ValueError"}
    accepted = [case for case in wanted if "error" not in case]
    assert {mode for case in accepted for mode in case["modes"]} == {"same", "valid"}
    assert sum(bool(case["pytorch"]["slice"]) for case in accepted) > 100
    assert len({limit.partition(",")[0] for case in accepted for limit in case["limits"]}) == 4


def test_the_fields_draw_and_spell_what_they_say(address: str, browser: Any) -> None:
    with Visit(browser) as visit:
        page = visit.page
        page.goto(address + "try.html")
        spelled = page.locator("#try-calls code")
        assert spelled.all_inner_texts() == [
            "y = nn.ConvTranspose3d(c_in, c_out, kernel_size=5, stride=3, padding=2, output_padding=2, bias=False)(x)",
            "y = nn.Conv3dTranspose(c_in, c_out, kernel_size=5, stride=3, pad_mode='pad', padding=2, output_padding=2,"
            " has_bias=False)(x)",
        ]
        assert "other values" in page.locator("#try-notes").inner_text()
        page.select_option("#try-contract", "mindspore")
        assert spelled.all_inner_texts()[1] == (
            "y = nn.ConvTranspose3d(c_in, c_out, kernel_size=5, stride=3, padding=1, bias=False)(x)"
        )
        assert page.locator("#try-result section").count() == 1  # the three axes are alike
        page.get_by_label("kernel_size, width").fill("2")
        assert page.locator("#try-result section h3").all_inner_texts() == ["depth, height: 4 → 12", "width: 4 → 12"]
        holes = page.locator("#try-result section").nth(1)
        assert "holes: kernel 2 is smaller than stride 3" in holes.inner_text()
        assert holes.locator(".overlap").all_text_contents() == list("110" * 4)
        assert holes.locator("line").count() == 8
        page.get_by_label("stride, all axes").fill("2")
        assert spelled.all_inner_texts()[1].endswith("(x)[..., :-1, :-1, :]")
        assert "symmetric" in page.locator("#try-notes").inner_text()
        page.select_option("#try-mode", "pad")
        page.get_by_label("padding, front, depth").fill("90")
        assert page.locator("#try-error").inner_text().startswith("RuntimeError: the output size is (-")
        assert visit.problems == []


def test_the_search_finds_a_word(address: str, browser: Any) -> None:
    with Visit(browser) as visit:
        visit.page.goto(address + "index.html", wait_until="networkidle")
        visit.page.locator(".md-search__input").click()
        visit.page.keyboard.type("checkerboard")
        results = visit.page.locator("a.md-search-result__link")
        results.first.wait_for()
        assert any("kernel-and-stride" in link.get_attribute("href") for link in results.all())
        assert visit.problems == []
