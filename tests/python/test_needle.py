"""examples/needle.py as a user runs it.

SPDX-License-Identifier: MIT
"""
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

NEEDLE = Path(__file__).resolve().parents[2] / "examples" / "needle.py"


class Needle(unittest.TestCase):
    def test_table_and_picture(self):
        with tempfile.TemporaryDirectory() as tmp:
            out = subprocess.run([sys.executable, "-B", NEEDLE, "--every", "50", "--kv", "f32,6bit", "--svg", f"{tmp}/needle.svg"],
                                 capture_output=True, text=True, timeout=250)
            self.assertEqual(out.returncode, 0, out.stderr)
            self.assertRegex(out.stdout, r"6bit: .*\n.*\n +128 +100 .* 100 \(2/2\)\n")
            cells = [title.text for title in ElementTree.parse(f"{tmp}/needle.svg").findall(".//{*}title")]
        self.assertEqual(len(cells), 2 * 10 * 5)
        self.assertEqual(sum(not text.endswith(": 0 of 0") for text in cells), 2 * 8)


if __name__ == "__main__":
    unittest.main()
