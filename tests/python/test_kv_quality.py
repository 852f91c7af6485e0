"""examples/kv_quality.py on every hundredth held-out case: the bar for the cache types, and that the tables say what was measured.

SPDX-License-Identifier: MIT
"""
import subprocess
import sys
import unittest
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
import kv_quality  # noqa: E402
import dsv2  # noqa: E402


class Quality(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        done = subprocess.run([sys.executable, "-B", EXAMPLES / "kv_quality.py", "--every", "100"], capture_output=True, text=True,
                              timeout=250)
        assert done.returncode == 0, done.stderr
        tables = [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
                  for table in done.stdout.strip().split("\n\n")]
        cls.size, cls.kl, cls.answers, cls.retrieval = [{row[0]: row[1:] for row in table[2:]} for table in tables]

    def test_bytes(self):
        self.assertEqual(self.size["bf16"][2:], ["69,120", "31,104"])  # 576 elements of 2 bytes, 60 and 27 layers
        self.assertEqual(self.size["6bit"][2], "24,000")
        self.assertLessEqual(int(self.size["6bit"][2].replace(",", "")), 432 * 60)

    def test_divergence(self):
        kl = {kv: [float(cell.split()[0]) for cell in row[:-1]] for kv, row in self.kl.items()}
        self.assertEqual(sorted(kl), sorted(dsv2.KV_TYPES))
        self.assertEqual(kl["f32"], [0, 0, 0, 0])
        for kv, values in kl.items():
            for value in values:
                self.assertLess(value, 0.01, kv)
                self.assertTrue(value > 0 or kv == "f32", kv)
        for sooner, later in (("bf16", "int8"), ("int8", "f8_e4m3"), ("f8_e4m3", "f8_e5m2")):
            self.assertLess(kl[sooner][0], kl[later][0])  # English has the most tokens

    def test_answers(self):
        for kv, row in self.answers.items():
            for cell in row:
                self.assertRegex(cell, r"^100\.0% .*, -0 \+0$", kv)
        for kv, row in self.retrieval.items():
            self.assertEqual([sum(int(cell.split(" of ")[i]) for cell in cells) for cells in (row[:4], row[4:]) for i in (0, 1)],
                             [4, 4, 4, 4], kv)

    def test_intervals(self):
        low, high = kv_quality.wilson(81, 263)  # Newcombe 1998 (Statistics in Medicine 17:857), method 3
        self.assertEqual((round(low, 4), round(high, 4)), (0.2553, 0.3662))
        self.assertEqual(kv_quality.wilson(0, 20)[0], 0)
        self.assertAlmostEqual(kv_quality.wilson(0, 20)[1], 0.1611, 4)
        sums, counts = [1.0, 3.0] * 500, [1, 1] * 500  # mean 2, deviation 1: 1.96 / sqrt(1000) on each side
        for got, want in zip(kv_quality.bootstrap(sums, counts), (2 - 0.062, 2 + 0.062)):
            self.assertAlmostEqual(got, want, delta=0.012)


if __name__ == "__main__":
    unittest.main()
