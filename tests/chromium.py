"""How a page behaves in a browser, where there is one."""

import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def look_at(page: Path, folder: Path, width: int) -> tuple[int, int, int, int]:
    """Opens a page in a frame of some width, since headless windows have a least width.

    Returns:
        The width that it would scroll over, that of the frame, players that can play, players; pixels.
    """
    probe = """<script>addEventListener('load', () => {
      const e = document.scrollingElement, a = [...document.querySelectorAll('audio')];
      const tell = () => parent.document.title = [e.scrollWidth, innerWidth, a.filter(x => x.duration > 0).length,
        a.length].join(' ');
      a.forEach(x => { x.onloadedmetadata = tell; x.preload = 'metadata'; x.load(); }); tell(); });</script>"""
    (folder / "page.html").write_text(page.read_text().replace("</body>", probe + "</body>"))
    (folder / "frame.html").write_text(f"<iframe src=page.html style='width:{width}px;height:900px;border:0'></iframe>")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    options += " --disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=9000"
    command = [str(CHROMIUM), *options.split(), f"--user-data-dir={folder / 'user'}", "--window-size=1400,900"]
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{folder}/frame.html"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stdout[:500]
    scroll, inner, playable, players = map(int, found.groups())
    return scroll, inner, playable, players
