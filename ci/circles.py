"""Circles of imports among the files of a crate, each by its names. Exits with 1 if there is one.

An import is a path in code that begins with `crate::`, `super::` or `self::`, outside of tests. It leads to the file of the
module that has the last name which is no module's, as far as re-exports tell. That a file declares modules, or re-exports
what they have, is no import of theirs.
"""

import re
import sys
from pathlib import Path

CRATES = [Path(name) for name in (".", "core", "engine-epoll", "engine-uring")]

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
TESTS = re.compile(r"#\[cfg\((?:all\()?test\b[^\n]*\n\s*mod \w+ \{.*?\n\}", re.S)
USE = re.compile(r"(pub(?:\([^)]*\))?\s+)?\buse\s+([^;]+);")
PATH = re.compile(r"\b((?:crate|super|self)(?:::(?:super|[A-Za-z_]\w*))+)")


def expand(tree, prefix=()):
    """The paths of a use tree: `a::{b, c as d}` gives (a, b) under the name b, and (a, c) under d."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace < 0:
        path, _, alias = tree.partition(" as ")
        names = prefix + tuple(part.strip() for part in path.split("::") if part.strip())
        if names and names[-1] == "self":
            names = names[:-1]
        if names:
            yield names, alias.strip() or names[-1]
        return
    prefix += tuple(part.strip() for part in tree[:brace].split("::") if part.strip())
    depth, start = 0, brace + 1
    for at in range(brace, len(tree)):
        depth += (tree[at] == "{") - (tree[at] == "}")
        if (tree[at] == "," and depth == 1) or (tree[at] == "}" and depth == 0):
            yield from expand(tree[start:at], prefix)
            start = at + 1


class Crate:
    def __init__(self, root):
        source = root / "src"
        self.files, self.texts, self.exports, self.uses = {}, {}, {}, {}
        for path in sorted(source.rglob("*.rs")):
            names = path.relative_to(source).with_suffix("").parts
            if names[-1] in ("mod", "lib", "main"):
                names = names[:-1]
            if "bin" in names:
                continue
            self.files[names] = path
            text = TESTS.sub("", COMMENT.sub("", path.read_text()))
            self.texts[names] = text
        for module, text in self.texts.items():
            self.exports[module], self.uses[module] = {}, set()
            for public, tree in USE.findall(text):
                for path, name in expand(tree):
                    target = self.absolute(module, path)
                    if target is None:
                        continue
                    if public:
                        self.exports[module][name] = target
                    else:
                        self.uses[module].add(target)
            for path in PATH.findall(USE.sub("", text)):
                target = self.absolute(module, tuple(path.split("::")))
                if target is not None:
                    self.uses[module].add(target)

    def absolute(self, module, path):
        """The path from the crate's root, if it is one of this crate."""
        if path[0] == "crate":
            return path[1:]
        if path[0] in ("self", "super"):
            base, rest = module, path
            while rest and rest[0] in ("self", "super"):
                base = base[:-1] if rest[0] == "super" else base
                rest = rest[1:]
            return base + rest
        # Of a module that is declared here.
        return module + path if module + path[:1] in self.files else None

    def home(self, path, seen=()):
        """The module that a path leads to."""
        module, rest = (), path
        while rest and module + rest[:1] in self.files:
            module, rest = module + rest[:1], rest[1:]
        if rest and rest[0] in self.exports[module] and path not in seen:
            return self.home(self.exports[module][rest[0]] + rest[1:], seen + (path,))
        return module

    def arrows(self):
        arrows = {}
        for module, targets in self.uses.items():
            homes = {self.home(target) for target in targets}
            arrows[module] = sorted(home for home in homes if home != module)
        return arrows


def circles(arrows):
    """The strongly connected parts with more than one module (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in arrows.get(module, ()):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            part = []
            while not part or part[-1] != module:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for module in arrows:
        if module not in index:
            visit(module)
    return found


def main(roots):
    number = 0
    for root in roots:
        crate = Crate(root)
        arrows = crate.arrows()
        for part in circles(arrows):
            number += 1
            print(f"circle {number}, of {len(part)} files:")
            for module in part:
                targets = [str(crate.files[target]) for target in arrows[module] if target in part]
                print(f"  {crate.files[module]} imports from {', '.join(targets)}")
    return 1 if number else 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]] or CRATES))
