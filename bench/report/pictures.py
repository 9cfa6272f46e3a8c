"""The picture of README.md: the page of a real search, as a browser shows it.

python -m bench.report.pictures [--out docs/images/tree.png]

The bundled nano-marco answers QUESTION, `marco-fast tree` writes the page, and a headless Chromium
(Debian's package chromium, or Google Chrome) takes its picture.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import marco_fast as mf
from marco_fast.tree_view.page import write_tree_page
from marco_fast.tree_view.read import read_tree

__all__ = ["LARGEST", "main", "photograph", "search"]

ROOT = Path(__file__).parents[2]
LARGEST = 200_000  # bytes of the picture
# Some paths answer it rightly and others wrongly: the statements 3 and 5 contradict each other.
QUESTION = (
    "1. The school opens at 6. 2. Ruth lives in Cairo. 3. Mark lives in Paris. "
    "4. The shop opens at 11. 5. Mark lives in Lima. Which of them cannot all be true?"
)
CONFIG = mf.SearchConfig(expansions=16, children=3, step_tokens=24, temperature=1.0, seed=1)
SIZE = (1280, 720)  # CSS pixels of the window
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def search(path: Path) -> None:
    """Answer QUESTION and save the tree."""
    with mf.Engine.from_pretrained("nano-marco") as engine:
        mf.solve(QUESTION, engine, CONFIG).save(path)


def photograph(page: Path) -> bytes:
    """A page as a PNG of at most LARGEST bytes, in few colours.

    Raises:
        ValueError: no browser is installed, it made no picture, or the picture is larger.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise ValueError(f"expected one of {', '.join(BROWSERS)} to be installed, found none")
    shot = page.with_suffix(".png")
    size = ",".join(map(str, SIZE))
    switches = (
        "headless=new no-sandbox disable-gpu disable-dev-shm-usage no-first-run hide-scrollbars "
        f"virtual-time-budget=3000 window-size={size} screenshot={shot}"
    )
    command = [browser, *(f"--{switch}" for switch in switches.split()), page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if not shot.is_file():
        raise ValueError(f"expected a picture of {browser}, got none: {done.stderr[-500:]}")
    buffer = io.BytesIO()
    image = Image.open(shot).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    data = buffer.getvalue()
    if len(data) > LARGEST:
        raise ValueError(f"expected a picture of at most {LARGEST} bytes, got {len(data)}")
    return data


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 2 where no picture can be made."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/tree.png")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            tree, page = Path(folder, "tree.json"), Path(folder, "tree.html")
            search(tree)
            write_tree_page(read_tree(tree), page)
            data = photograph(page)
    except ValueError as error:
        print(f"bench.report.pictures: {error}", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(data)
    print(f"wrote {options.out}, {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
