"""The formulas of docstrings as TeX: the lines of a section `Formula:`, in the notation of the docstrings.

`<-` assigns; two factors side by side are a product, and `/` divides all before it in its product; `^` raises; `x_t`
and `u_(t+1)` have an index; `|x|` is an absolute value, `y'` a transpose.  What follows a comma and a space is text.
"""

import re

GREEK = {"alpha", "beta", "mu", "rho"}
#: names of hyperparameters that have a usual letter; the page says which
LETTERS = {"learning_rate": r"\eta", "epsilon": r"\varepsilon", "lambd": r"\lambda", "weight_decay": r"\lambda",
           "momentum": r"\mu"}
FUNCTIONS = {"max": r"\max", "min": r"\min", "sign": r"\operatorname{sign}", "clip": r"\operatorname{clip}",
             "mean": r"\operatorname{mean}", "RMS": r"\operatorname{RMS}", "sqrt": "", "norm": ""}
SECTION = re.compile(r"^( *)Formula:\n((?:\1 +.*\n|\n)+)", re.M)
TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*_?|\d+(?:\.\d+)?|[-+/^'|(),]|(\S)")


class FormulaError(ValueError):
    """A line of a section `Formula:` cannot be read."""


def section(docstring):
    """The lines of the section `Formula:`, each as (left side, sign, right side, text)."""
    found = SECTION.search(docstring + "\n")
    return [cut(line.strip()) for line in found[2].splitlines() if line.strip()] if found else []


def cut(line):
    """A line at its sign, and at its first comma outside of parentheses."""
    formula, text = line, ""
    for comma in re.finditer(", ", line):
        if line.count("(", 0, comma.start()) == line.count(")", 0, comma.start()):
            formula, text = line[:comma.start()], line[comma.end():]
            break
    left, sign, right = re.fullmatch(r"(.*?) (<-|=) (.*)", formula).groups()
    return left, sign, right, text


def parsed(formula):
    """The formula as nested tuples: a kind, and its parts."""
    return _Parser(formula).whole()


class _Parser:
    """Recursive descent over one side of a formula."""

    def __init__(self, formula):
        self.formula, self.tokens, self.bars = formula, [], 0
        for found in TOKEN.finditer(formula):
            if found[1]:
                raise FormulaError(f"{formula!r}: cannot read {found[1]!r}")
            self.tokens.append(found[0])

    def peek(self):
        return self.tokens[0] if self.tokens else ""

    def take(self, token=None):
        if not self.tokens or token not in (None, self.tokens[0]):
            raise FormulaError(f"{self.formula!r}: expected {token or 'more'} before {' '.join(self.tokens)!r}")
        return self.tokens.pop(0)

    def whole(self):
        node = self.sum()
        if self.tokens:
            raise FormulaError(f"{self.formula!r}: {' '.join(self.tokens)!r} is left over")
        return node

    def sum(self):
        node = ("minus", self.take("-") and self.product()) if self.peek() == "-" else self.product()
        while self.peek() in ("+", "-"):
            node = (self.take(), node, self.product())
        return node

    def product(self):
        """Factors from left to right; `/` divides all of them so far."""
        node = self.power()
        while self.peek():
            if self.peek() == "/":
                node = (self.take(), node, self.power())
            elif self.peek()[0].isalnum() or self.peek() == "(" or (self.peek() == "|" and not self.bars):
                node = ("*", node, self.power())
            else:
                break
        return node

    def power(self):
        node = self.atom()
        while self.peek() in ("^", "'"):
            if self.take() == "'":
                node = ("'", node)
            else:
                node = ("^", node, ("minus", self.take() and self.atom()) if self.peek() == "-" else self.atom())
        return node

    def atom(self):
        token = self.take()
        if token == "(":
            bars, self.bars = self.bars, 0
            node = ("()", self.sum())
            self.bars = bars
            self.take(")")
            return node
        if token == "|":
            self.bars += 1
            node = ("||", self.sum())
            self.bars -= 1
            self.take("|")
            return node
        if token in FUNCTIONS:
            return (token, *self.arguments())
        if token[0].isdigit():
            return "number", token
        if token.endswith("_"):
            return "index", token[:-1], *self.arguments()
        if token[0].isalpha():
            return "name", token
        raise FormulaError(f"{self.formula!r}: did not expect {token!r}")

    def arguments(self):
        self.take("(")
        nodes = [self.sum()]
        while self.peek() == ",":
            self.take()
            nodes.append(self.sum())
        self.take(")")
        return nodes


def tex(node):
    """The TeX of a node."""
    kind, *parts = node
    match kind:
        case "number":
            return parts[0]
        case "name":
            return name(parts[0])
        case "index":
            return f"{name(parts[0])}_{{{tex(parts[1])}}}"
        case "+" | "-":
            return f"{tex(parts[0])} {kind} {tex(parts[1])}"
        case "*":
            return rf"{tex(parts[0])}\,{tex(parts[1])}"
        case "minus":
            return f"-{tex(parts[0])}"
        case "/":
            return rf"\frac{{{tex(bare(parts[0]))}}}{{{tex(bare(parts[1]))}}}"
        case "^":
            return f"{tex(parts[0])}^{{{tex(bare(parts[1]))}}}"
        case "'":
            return rf"{tex(parts[0])}^\top"
        case "()":
            return rf"\left({tex(parts[0])}\right)"
        case "||":
            return rf"\lvert {tex(parts[0])} \rvert"
        case "norm":
            return rf"\lVert {tex(parts[0])} \rVert"
        case "sqrt":
            return rf"\sqrt{{{tex(parts[0])}}}"
    return rf"{FUNCTIONS[kind]}\left({', '.join(map(tex, parts))}\right)"


def bare(node):
    """A node without parentheses around all of it."""
    return node[1] if node[0] == "()" else node


def name(token):
    """A letter, a Greek letter or a name in upright letters; with its index."""
    first, _, index = token.partition("_")
    if token in LETTERS:
        return LETTERS[token]
    if index == "hat":
        return rf"\hat{{{name(first)}}}"
    if len(index) == 1 and (len(first) == 1 or first in GREEK | set(LETTERS)):
        return f"{name(first)}_{{{index}}}"
    if token in GREEK:
        return "\\" + token
    return token if len(token) == 1 else rf"\mathrm{{{token}}}".replace("_", r"\_")


def display(lines):
    """The lines of a section as aligned formulas."""
    rows = [rf"{tex(parsed(left))} &{'=' if sign == '=' else chr(92) + 'leftarrow'} {tex(parsed(right))}"
            + (rf" \quad {beside(text)}" if text else "") for left, sign, right, text in lines]
    return "\\begin{aligned}\n" + " \\\\[4pt]\n".join(rows) + "\n\\end{aligned}"


def beside(text):
    """The TeX of the text beside a formula, in which names with an index and comparisons are formulas."""
    parts = re.split(r"(\w+_\w\b|<=|>)", text)
    signs = {"<=": r"\le", ">": ">"}
    return "".join(signs.get(part) or name(part) if k % 2 else rf"\text{{{part}}}" for k, part in enumerate(parts))


def letters(lines):
    """The pairs of letter and name that a reader must be told."""
    tokens = {token for left, _, right, _ in lines for token in re.findall(r"[A-Za-z]\w*", f"{left} {right}")}
    return [(name(token), token) for known in LETTERS
            for token in sorted(tokens) if re.fullmatch(rf"{known}(_\d)?", token)]
