"""Pages in a real browser (chromium, headless); what their scripts did is read from the document that it prints."""

import json
import re
import shutil
import subprocess
from urllib.parse import unquote

CATCH = "<script>window.onerror = (text) => { document.documentElement.dataset.error = text; };</script>"


class Browser:
    """Chromium with an empty profile and no network: every request that a page made would be a log line."""

    def __init__(self, folder):
        self.program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert self.program, "these tests need chromium (Debian: apt-get install chromium)"
        self.folder = folder

    def run(self, page, *options):
        path = self.folder / "page.html"
        path.write_text(page, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
        flags += [f"--user-data-dir={self.folder / 'profile'}", "--virtual-time-budget=2000", "--window-size=1400,900"]
        done = subprocess.run(
            [self.program, *flags, *options, path.as_uri()], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def document(self, page, script=""):
        """The page's document after its scripts, and then `script`, have run. Fails on an error in any of them."""
        page = page.replace("<head>", f"<head>{CATCH}", 1)
        page = page.replace("</body>", f"<script>{script}</script></body>")
        found = self.run(page, "--dump-dom")
        assert "data-error" not in found.split("<head>")[0], found.split("<head>")[0]
        return found

    def answer(self, page, expression):
        """The value of a JavaScript expression on the page, as JSON."""
        script = f"document.body.dataset.answer = encodeURIComponent(JSON.stringify({expression}));"
        found = re.search(r'data-answer="([^"]*)"', self.document(page, script))
        return json.loads(unquote(found.group(1)))
