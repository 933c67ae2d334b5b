"""A picture of a page: ``python docs/picture.py reports/index.html docs/report.png`` (needs chromium)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH_PX, HEIGHT_PX = 1200, 900


def main(page: str, picture: str) -> None:
    """Raises SystemExit when there is no page or no browser."""
    source, target = Path(page).resolve(), Path(picture).resolve()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not source.is_file():
        raise SystemExit(f"no page {page}: run `make report` first")
    if not chromium:
        raise SystemExit("no chromium on the path (Debian: apt install chromium)")
    with tempfile.TemporaryDirectory() as profile:
        flags = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
        quiet = "--disable-background-networking --disable-component-update --disable-sync"
        subprocess.run(
            [
                chromium,
                *flags.split(),
                *quiet.split(),
                f"--user-data-dir={profile}",
                f"--window-size={WIDTH_PX},{HEIGHT_PX}",
                "--virtual-time-budget=10000",
                f"--screenshot={target}",
                source.as_uri(),
            ],
            check=True,
            timeout=120,
            stderr=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2])
