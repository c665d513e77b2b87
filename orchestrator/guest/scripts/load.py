"""Runs the last of some programs; it may import the others as they are called here, late what it needs late.

Words: name and text of each program, "--", and the words of the last one. Without any program they come over stdin: a
line "programs MAGIC LENGTH", and so many bytes, a marshalled list of name, text and compiled text. To compile takes a
tenth of a second in an emulated machine; what MAGIC, the compiling Python's, is not this one's is compiled here.
"""
# mypy: ignore-errors

import sys


class Programs:
    """Finds and loads them, and the packages that they are said to be of."""

    def __init__(self, codes):
        self.codes = codes

    def find_spec(self, name, path, target=None):
        if any(each == name or each.startswith(name + ".") for each in self.codes):
            return type(sys.__spec__)(name, self, is_package=name not in self.codes)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        self.run(module.__name__, module.__dict__)

    def run(self, name, namespace):
        code = self.codes.get(name, "")
        exec(compile(code, name, "exec") if isinstance(code, str) else marshal.loads(code), namespace)  # noqa: S102,S302


at = sys.argv.index("--")
codes = dict(zip(sys.argv[1:at:2], sys.argv[2:at:2], strict=True))
if not codes:
    import marshal
    import posix
    from _frozen_importlib_external import MAGIC_NUMBER

    line = b""
    while line[-1:] != b"\n":
        line += posix.read(0, 1) or b"\n"
    _, magic, length = line.split()
    sent = b""
    while len(sent) < int(length):
        sent += posix.read(0, int(length) - len(sent)) or sys.exit()
    mine = magic.decode() == MAGIC_NUMBER.hex()
    codes = {name: code if mine else text for name, text, code in marshal.loads(sent)}  # noqa: S302
sys.argv[1:] = sys.argv[at + 1 :]
programs = Programs(codes)
sys.meta_path.append(programs)
programs.run(list(codes)[-1], {"__name__": "__main__"})
