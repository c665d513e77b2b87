"""Runs the last of the programs in its words, which may import the others as they are called here.

Words: name and text of each program, "--", and the words of the last one.
"""

import sys

at = sys.argv.index("--")
texts = sys.argv[1:at]
sys.argv[1:] = sys.argv[at + 1 :]
*imported, last = zip(texts[::2], texts[1::2], strict=True)
for name, text in imported:
    sys.modules[name] = type(sys)(name)
    exec(compile(text, name, "exec"), sys.modules[name].__dict__)  # noqa: S102
exec(compile(last[1], last[0], "exec"), {"__name__": "__main__"})  # noqa: S102
