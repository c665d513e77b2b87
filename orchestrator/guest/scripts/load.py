"""Runs the last of the programs in its words; it may import the others as they are called here. Each is compiled when
it is imported: that takes a while in an emulated machine, so a program may import late what it needs late.

Words: name and text of each program, "--", and the words of the last one.
"""

import sys


class Texts:
    """Finds and loads the programs, and the packages that they are said to be of."""

    def __init__(self, words):  # type: ignore[no-untyped-def]
        self.texts = dict(zip(words[::2], words[1::2], strict=True))

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        if any(each == name or each.startswith(name + ".") for each in self.texts):
            return type(sys.__spec__)(name, self, is_package=name not in self.texts)  # type: ignore[arg-type]
        return None

    def create_module(self, spec):  # type: ignore[no-untyped-def]
        return None

    def exec_module(self, module):  # type: ignore[no-untyped-def]
        exec(compile(self.texts.get(module.__name__, ""), module.__name__, "exec"), module.__dict__)  # noqa: S102


at = sys.argv.index("--")
texts = Texts(sys.argv[1:at])  # type: ignore[no-untyped-call]
name, text = sys.argv[at - 2 : at]
sys.argv[1:] = sys.argv[at + 1 :]
sys.meta_path.append(texts)
exec(compile(text, name, "exec"), {"__name__": "__main__"})  # noqa: S102
