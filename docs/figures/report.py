"""The picture of README.md: `print(net)` beside the report of the run that trained it. Needs Chromium.

python docs/figures/report.py [--run RUN]    a run of `resode train quickstart-parabolic` (default: train it)
"""

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import resode

OUT = Path(__file__).with_name("report.png")
CODE = """$ resode train quickstart-parabolic --out runs/heat

>>> net = resode.load("runs/heat")
>>> print(net)"""
WIDTH, HEIGHT = 1560, 680
PAGE = """<!doctype html><meta charset=utf-8><style>
body {{ margin: 0; display: flex; gap: 20px; padding: 20px; background: #e8ebef; box-sizing: border-box }}
pre {{ margin: 0; padding: 22px; background: #17202b; color: #d9e1ea; border-radius: 8px;
       font: 13px/1.72 "DejaVu Sans Mono", monospace; white-space: pre }}
b {{ color: #f0b072; font-weight: normal }}
div {{ flex: 1; overflow: hidden; border-radius: 8px; height: 640px; background: white }}
iframe {{ border: 0; width: 1012px; height: 1000px; transform: scale({scale}); transform-origin: 0 0 }}
</style><pre><b>{code}</b>

{text}</pre><div><iframe src="{report}"></iframe></div>"""


def picture(run: Path, folder: Path) -> None:
    """Draw the network and the report of a finished run side by side."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("needs Chromium on the PATH")
    page, shot = folder / "page.html", folder / "shot.png"
    text, report = html.escape(str(resode.load(run))), (run / "report.html").resolve().as_uri()
    page.write_text(
        PAGE.format(code=html.escape(CODE), text=text, report=report, scale=0.665), encoding="utf-8"
    )
    flags = (
        "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run "
        "--disable-background-networking --allow-file-access-from-files --virtual-time-budget=4000"
    )
    places = [f"--user-data-dir={folder / 'profile'}", f"--screenshot={shot}", page.as_uri()]
    command = [chromium, *flags.split(), f"--window-size={WIDTH},{HEIGHT}", *places]
    subprocess.run(command, check=True, capture_output=True)
    Image.open(shot).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(f"written: {OUT}, {OUT.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Train where no run is given, then draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run = arguments.run or Path(name) / "run"
        if arguments.run is None:
            command = [sys.executable, "-m", "resode", "train", "quickstart-parabolic", "--out", str(run)]
            subprocess.run(command, check=True)
        picture(run, Path(name))


if __name__ == "__main__":
    main()
