"""The ctypes declarations against dsv2.h itself: a C program prints what the compiler sees.

SPDX-License-Identifier: MIT
"""
import ctypes
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from dsv2 import _errors, _lib

HEADER = Path(__file__).resolve().parents[2] / "include" / "dsv2.h"
CC = shutil.which(os.environ.get("CC", "gcc"))


@unittest.skipUnless(CC, "no C compiler")
class Layout(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.header = HEADER.read_text()
        lines = []
        for name, struct in _lib.STRUCTS.items():
            lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
            lines += [f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
                      for field, _ in struct._fields_]
        cls.constants = re.findall(r"^#define (DSV2_[A-Z0-9_]+) +\(?-?\d", cls.header, re.M)
        lines += [f'printf("{name} %lld\\n", (long long)({name}));' for name in cls.constants]
        with tempfile.TemporaryDirectory() as tmp:
            source = Path(tmp, "layout.c")
            source.write_text("#include <stdio.h>\n#include <dsv2.h>\nint main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
            subprocess.run([CC, "-I", HEADER.parent, "-o", f"{tmp}/layout", source], check=True)
            out = subprocess.run([f"{tmp}/layout"], check=True, capture_output=True, text=True).stdout
        cls.seen = {name: [int(n) for n in numbers] for name, *numbers in (line.split() for line in out.splitlines())}

    def test_every_struct_is_declared(self):
        named = {a or b for a, b in re.findall(r"^} (dsv2_\w+);|^struct (dsv2_\w+) {", self.header, re.M)}
        self.assertEqual(named - {"dsv2_reader"}, set(_lib.STRUCTS))

    def test_structs(self):
        for name, struct in _lib.STRUCTS.items():
            with self.subTest(name):
                self.assertEqual([ctypes.sizeof(struct)], self.seen[name])
                for field, _ in struct._fields_:
                    at = getattr(struct, field)
                    self.assertEqual([at.offset, at.size], self.seen[f"{name}.{field}"], field)

    def test_constants(self):
        for name in self.constants:
            mine = name.removeprefix("DSV2_")
            if hasattr(_lib, mine):
                self.assertEqual([getattr(_lib, mine)], self.seen[name], name)

    def test_every_status_has_an_exception(self):
        errors = {self.seen[n][0] for n in self.constants if n.startswith("DSV2_ERR_")} - {_lib.ERR_BUFFER}
        self.assertEqual(errors, set(_errors.BY_STATUS))

    def test_every_function_is_declared(self):
        declared = re.findall(r"DSV2_API([^;]*?)\b(dsv2_\w+)\(([^;]*)\);", self.header)
        self.assertEqual({name for _, name, _ in declared}, set(_lib.PROTOTYPES))
        for result, name, arguments in declared:
            with self.subTest(name):
                n = 0 if arguments.strip() == "void" else arguments.count(",") + 1
                self.assertEqual(n, len(_lib.PROTOTYPES[name]) - 1)
                self.assertEqual(result.strip() == "void", _lib.PROTOTYPES[name][0] is None)


if __name__ == "__main__":
    unittest.main()
