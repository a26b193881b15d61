"""Pages in a real browser: nothing runs over the edge of a laptop or a phone, nothing is fetched."""

import html
import json
import re
import shutil
import subprocess

import pytest

from resode import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
LAPTOP, PHONE = 1200, 390
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--allow-file-access-from-files", "--virtual-time-budget=4000", "--dump-dom",
)  # fmt: skip
FRAME = """<!doctype html><iframe id=page width=%d height=900 src="%s"></iframe><pre id=found></pre><script>
page.onload = () => {
  const inside = page.contentDocument, root = inside.documentElement
  const size = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom] }
  const plots = [...inside.querySelectorAll('svg')]
  const over = (a, b) => Math.min(a[2], b[2]) - Math.max(a[0], b[0]) > 1 && Math.min(a[3], b[3]) - Math.max(a[1], b[1]) > 3
  const names = plots.map(p => [...p.querySelectorAll('text.name, .grid text')].map(size))
  found.textContent = JSON.stringify({
    width: root.clientWidth, content: root.scrollWidth,
    drawn: plots.length, flat: plots.filter(p => p.getBoundingClientRect().height < 40).length,
    paths: [...inside.querySelectorAll('svg path.curve, svg path.front')].filter(p => p.getTotalLength() == 0).length,
    overlapping: names.reduce((n, all) => n + all.filter((a, i) => all.slice(i + 1).some(b => over(a, b))).length, 0),
    fetched: page.contentWindow.performance.getEntriesByType('resource').map(r => r.name),
    wide: [...inside.querySelectorAll('body *')].filter(e =>
      e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest('.box, pre, svg')).map(e => e.outerHTML.slice(0, 80)),
  })
}
</script>"""  # noqa: E501  # a page, wrapped as JavaScript is


def seen(page, width, tmp_path):
    """What a browser of this width makes of a page."""
    frame = tmp_path / f"frame{width}.html"
    frame.write_text(FRAME % (width, page.as_uri()))
    profile = tmp_path / f"profile{width}"
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--window-size={width + 60},1000",
        frame.as_uri(),
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=900).stdout
    found = re.search('<pre id="found">(.+?)</pre>', said, re.DOTALL)
    assert found, said[:2000]
    return json.loads(html.unescape(found[1]))


def assert_readable(found, plots):
    assert found["content"] <= found["width"], found
    assert found["wide"] == []
    assert found["drawn"] == plots
    assert found["flat"] == found["paths"] == found["overlapping"] == 0, found
    assert found["fetched"] == []


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
def test_a_run_is_readable(make_run, tmp_path, width):
    assert_readable(seen(report.write(make_run()), width, tmp_path), plots=3)


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
def test_a_study_is_readable(arm, tmp_path, width):
    for place, channels in enumerate((12, 14, 16, 20)):
        widths = [channels, 2 * channels, 4 * channels]
        errors = {seed: 8.0 + 0.3 * seed - 0.2 * place for seed in range(3)}
        arm(f"width{channels}", errors, model={"name": "he_resnet20", "widths": widths})
    name = "scheme=rk4,model.states.steps=4,model.controls.channels"  # as a grid makes them
    arms = {f"width{c}-{s}": f"{name}={c}" for c in (12, 14, 16, 20) for s in range(3)}
    (tmp_path / "arms.json").write_text(json.dumps(arms))
    page = report.write_study(report.read_study(tmp_path))
    assert_readable(seen(page, width, tmp_path), plots=5)
