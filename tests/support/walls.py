"""Finds breaches of the walls between the parts of optimc.  Each rule reads a tree and returns what breaks it.

A rule is a function of the tree's root that returns lines such as "csrc/plan/plan.c:9: includes Python.h".
test_walls.py runs each rule on this tree, where it must find nothing, and on a copy with a planted breach, which it
must find.  docs/project/design/architecture.md says what the walls are for.
"""

import ast
import re
import sys
from collections import defaultdict

# ------------------------------------------------------------------------------------------- C

SYSTEM_HEADERS = re.compile(r"pthread|sched|unistd|windows|process|signal|sys/.*")
SYSTEMS = re.compile(r"\b(_WIN32|__linux__|__APPLE__|__unix__|_MSC_VER|__MINGW\w+)\b")
INSTRUCTION_SETS = re.compile(r"(?<![A-Za-z0-9])(avx\w*|sse\d*|neon|sve|fma)(?![A-Za-z0-9])", re.I)
PROCESSORS = re.compile(r"\b(__x86_64__|__i386__|__aarch64__|__arm\w*)\b")
#: the files that may name an instruction set; a kernels_ISA.c, too
ISA_FILES = {"isa.c", "isa.h"}
#: the files that may ask which system they are compiled for
SYSTEM_FILES = {"pool.c", "forks.c", "forks.h", "latch.c", "lent.c", "homes.c", "team.c", "processors.c",
                "winthreads.h", "tensorflow.c", "graph.c"}
#: macros of these files are the text of functions, or rows of a table
STAMPING = {"loop.inc", "table.inc", "kernels.inc", "reduce.inc", "words.inc", "convert.inc", "fused.inc",
            "tensorflow.h"}


def c_files(root):
    return sorted(path for path in (root / "csrc").rglob("*") if path.suffix in {".c", ".h", ".inc", ".def"})


def without_comments(text):
    """C text whose comments are blank; every line keeps its number."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match[0]) if match[0].startswith("/") else match[0]
    return re.sub(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"", blank, text, flags=re.S)


def without_strings(text):
    return re.sub(r"\"(?:\\.|[^\"\\\n])*\"", '""', text)


def lines_of(path, clean=without_comments):
    return enumerate(clean(path.read_text("utf-8")).split("\n"), 1)


def at(root, path, number, what):
    return f"{path.relative_to(root).as_posix()}:{number}: {what}"


def includes(root):
    """Each #include: file, line number, what it includes, whether in quotes."""
    for path in c_files(root):
        for number, line in lines_of(path):
            match = re.match(r"\s*#\s*include\s*([<\"])([^>\"]+)", line)
            if match:
                yield path, number, match[2], match[1] == '"'


def folder_of(root, path):
    """The folder of csrc/ that a file lies in: "" for those on top."""
    return path.relative_to(root / "csrc").parent.as_posix().replace(".", "", 1)


def only_python_includes_python(root):
    """Only csrc/python/ includes the headers of Python and NumPy."""
    return [at(root, path, number, f"includes {name}") for path, number, name, _ in includes(root)
            if folder_of(root, path) != "python" and re.match(r"Python\.h|structmember\.h|numpy/", name)]


def rules_include_nothing(root):
    """rules.inc includes nothing."""
    return [at(root, path, number, f"includes {name}") for path, number, name, _ in includes(root)
            if path.name == "rules.inc"]


def folders_include_downwards(root):
    """kernels/ includes neither plan/ nor python/, and plan/ not python/."""
    above = {"kernels": ("plan/", "python/"), "plan": ("python/",), "": ("kernels/", "plan/", "python/")}
    return [at(root, path, number, f"includes {name}") for path, number, name, _ in includes(root)
            if name.startswith(above.get(folder_of(root, path), ()))]


def includes_name_their_folder(root):
    """An include of this tree is written from csrc/: "plan/plan.h"."""
    return [at(root, path, number, f"includes {name}") for path, number, name, quoted in includes(root)
            if quoted and (".." in name or not (root / "csrc" / name).is_file())]


def names_of_optimizers(root):
    """The rules and the classes of the registry, in lower case."""
    text = without_comments((root / "csrc" / "optimizers.def").read_text("utf-8"))
    rules = re.findall(r"^RULE_ROW\((\w+)", text, re.M)
    tree = ast.parse((root / "optimc" / "optimizers.py").read_text("utf-8"))
    classes = [node.name.lower() for node in tree.body if isinstance(node, ast.ClassDef)]
    return sorted({*rules, *classes, "muon"}, key=len, reverse=True)


def machinery_names_no_optimizer(root):
    """Nothing in kernels/ or plan/ names an optimizer, comments included."""
    names = "|".join(map(re.escape, names_of_optimizers(root)))
    pattern = re.compile(rf"(?<![A-Za-z0-9])({names})(?![A-Za-z0-9])", re.I)
    return [at(root, path, number, f"names {match[1]}") for path in c_files(root)
            if folder_of(root, path) in {"kernels", "plan"}
            for number, line in lines_of(path, str) if (match := pattern.search(line))]


def only_isa_files_name_an_isa(root):
    """Only the ISA files name an instruction set; only they and pool.c ask for a processor."""
    found = []
    for path in c_files(root):
        if path.name in ISA_FILES or re.fullmatch(r"kernels_\w+\.c", path.name):
            continue
        for number, line in lines_of(path, lambda text: without_strings(without_comments(text))):
            match = INSTRUCTION_SETS.search(line) or (path.name not in SYSTEM_FILES and PROCESSORS.search(line))
            if match:
                found.append(at(root, path, number, f"names {match[1]}"))
    return found


def only_system_files_ask_for_a_system(root):
    """Only these files ask which system this is, or include its headers."""
    found = [at(root, path, number, f"includes {name}") for path, number, name, _ in includes(root)
             if path.name not in SYSTEM_FILES and SYSTEM_HEADERS.fullmatch(name.removesuffix(".h"))]
    return found + [at(root, path, number, f"asks for {match[1]}") for path in c_files(root)
                    if path.name not in SYSTEM_FILES
                    for number, line in lines_of(path) if (match := SYSTEMS.search(line))]


def macros_are_short(root):
    """A macro outside the stamping files has at most five lines."""
    found = []
    for path in c_files(root):
        for match in re.finditer(r"^[ \t]*#\s*define\s+(\w+)(?:.*\\\n)*.*", path.read_text("utf-8"), re.M):
            if match[0].count("\n") >= 6 and path.name not in STAMPING:
                number = path.read_text("utf-8")[:match.start()].count("\n") + 1
                found.append(at(root, path, number, f"{match[1]} has {match[0].count(chr(10)) + 1} lines"))
    return found


def c_files_open_with_their_name(root):
    """A C file opens with its story, which begins with its name."""
    return [at(root, path, 1, "does not open with its name") for path in c_files(root)
            if not path.read_text("utf-8").startswith(f"/* {path.name} - ")]


def stories_name_files_that_exist(root):
    """A file that a comment in csrc/ names is in the tree."""
    known = {path.name for folder in ("csrc", "tests", "optimc") for path in (root / folder).rglob("*.*")}
    found = []
    for path in c_files(root):
        for number, line in lines_of(path, str):
            for name in re.findall(r"(?<![\w<*/.])(?:\w+/)*(\w+\.(?:c|h|inc|def|py|txt))\b(?!>)", line):
                if name not in known and not re.match(r"\s*#\s*include", line):
                    found.append(at(root, path, number, f"names {name}"))
    return found


def stems_lie_in_one_folder(root):
    """Base names are unique: a stem occurs in one folder of csrc/, and once among tests, tools and benchmarks."""
    folders, files = defaultdict(set), defaultdict(set)
    for path in c_files(root):
        folders[path.stem].add(path.parent)
    for folder in ("tests", "tools", "benchmarks"):
        for path in (root / folder).rglob("*.py"):
            if not path.stem.startswith("__"):
                files[path.stem].add(path)
    return [f"{stem}: {', '.join(sorted(place.relative_to(root).as_posix() for place in places))}"
            for found in (folders, files) for stem, places in found.items() if len(places) > 1]


# ------------------------------------------------------------------------------------------- Python

#: framework -> the part of optimc that may import it; what cli/ compares with, it may import
FRAMEWORKS = {"torch": {"torch", "keras"}, "keras": {"keras"}, "jax": {"keras"}, "tensorflow": {"keras"},
              "sklearn": {"sklearn"}, "mpi4py": {"mpi"}, "thinc": {"thinc"}, "threadpoolctl": {"threadpoolctl"},
              "deepspeed": {"deepspeed"},
              "rich": {"checkpoint"},           # if it is installed: a bar, while a large file is written
              "ml_dtypes": {"base"}}            # for weights of its bfloat16, which NumPy lacks


def modules(root):
    """Name -> path of the modules of optimc."""
    found = {}
    for path in sorted((root / "optimc").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def run_nodes(tree):
    """The nodes of a module that can run: all but the bodies of `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node = ast.Module(node.orelse, [])
        yield node
        yield from run_nodes(node)


def imports(tree, name, package):
    """The imports of a module, those inside functions included: line number and candidates, the longest first."""
    for node in run_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, [alias.name]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[:len(name.split(".")) - node.level + package]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, [f"{base}.{alias.name}", base]


def import_graph(root):
    """Module -> the modules of optimc that it imports.

    Who imports a module of another package imports that package's __init__ first.  That of optimc itself is left out.
    """
    known = modules(root)
    graph = {}
    for name, path in known.items():
        graph[name] = set()
        for _, candidates in imports(ast.parse(path.read_text("utf-8")), name, path.stem == "__init__"):
            target = next((candidate for candidate in candidates if candidate in {*known, "optimc._core"}), None)
            if target not in {None, name, "optimc._core"}:
                parts = target.split(".")
                packages = [".".join(parts[:n]) for n in range(2, len(parts))]
                graph[name] |= {target, *(other for other in packages if not f"{name}.".startswith(f"{other}."))}
    return graph


def cycles(graph):
    """The sets of modules that import one another, by Tarjan's algorithm."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            members = stack[stack.index(node):]
            del stack[stack.index(node):]
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def modules_import_in_one_direction(root):
    """No circle of imports in optimc."""
    return [" <-> ".join(members) for members in cycles(import_graph(root))]


def only_adapters_import_frameworks(root):
    """optimc needs NumPy alone: only an adapter imports its framework."""
    found = []
    for name, path in modules(root).items():
        part = [*name.split("."), ""][1]
        for number, candidates in imports(ast.parse(path.read_text("utf-8")), name, path.stem == "__init__"):
            top = candidates[-1].split(".")[0]
            if top in sys.stdlib_module_names or top in {"numpy", "optimc"} or part == "cli":
                continue
            if part not in FRAMEWORKS.get(top, ()):
                found.append(at(root, path, number, f"imports {top}"))
    return found


def python_files(root):
    return sorted([path for folder in ("optimc", "tests", "tools", "benchmarks", "examples")
                   for path in (root / folder).rglob("*.py")] + [root / "setup.py"])


def modules_have_a_docstring(root):
    """A Python file opens with a docstring."""
    return [at(root, path, 1, "has no docstring") for path in python_files(root)
            if path.read_text("utf-8").strip() and not ast.get_docstring(ast.parse(path.read_text("utf-8")))]


# ------------------------------------------------------------------------------------------- sizes

MOST_LINES, MOST_OF_BOUNDARY, MOST_OF_CLASS, MOST_OF_FUNCTION, MOST_COLUMNS = 600, 450, 300, 80, 118
#: one page each: the rules, and the classes with their docstrings
LONG_FILES = {"rules.inc", "optimizers.py"}


def files_are_short(root):
    """A file has at most 600 lines, one of csrc/python/ 450; rules.inc and optimizers.py are one page each."""
    found = []
    for path in [*c_files(root), *python_files(root), *(root / "tests").rglob("*.c")]:
        lines = path.read_text("utf-8").count("\n")
        most = MOST_OF_BOUNDARY if path.parent == root / "csrc" / "python" else MOST_LINES
        if lines > most and path.name not in LONG_FILES:
            found.append(f"{path.relative_to(root).as_posix()}: {lines} lines")
    return found


def length(node):
    """The lines of a class or function without docstrings."""
    lines = node.end_lineno - node.lineno + 1
    for inner in ast.walk(node):
        if isinstance(inner, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(inner):
            lines -= inner.body[0].end_lineno - inner.body[0].lineno + 1
    return lines


def classes_and_functions_are_short(root):
    """A class has at most 300 lines and a function 80, docstrings aside."""
    found = []
    for path in python_files(root):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            most = {ast.ClassDef: MOST_OF_CLASS, ast.FunctionDef: MOST_OF_FUNCTION}.get(type(node))
            if most and length(node) > most:
                found.append(at(root, path, node.lineno, f"{node.name} has {length(node)} lines"))
    for path in [*c_files(root), *(root / "tests").rglob("*.c")]:
        for match in re.finditer(r"^(\w[^\n;#]*\([^;{}#]*\))\s*^\{\n(.*?)^\}", path.read_text("utf-8"), re.M | re.S):
            lines = match[2].count("\n") + 2
            if lines > MOST_OF_FUNCTION:
                number = path.read_text("utf-8")[:match.start()].count("\n") + 1
                found.append(at(root, path, number, f"{match[1].split('(')[0]} has {lines} lines"))
    return found


def c_lines_are_narrow(root):
    """A line of C has at most 118 columns; ruff checks those of Python."""
    return [at(root, path, number, f"{len(line)} columns") for path in c_files(root)
            for number, line in lines_of(path, str) if len(line) > MOST_COLUMNS]


RULES = [
    only_python_includes_python, rules_include_nothing, folders_include_downwards, includes_name_their_folder,
    machinery_names_no_optimizer, only_isa_files_name_an_isa, only_system_files_ask_for_a_system, macros_are_short,
    c_files_open_with_their_name, stories_name_files_that_exist, stems_lie_in_one_folder,
    modules_import_in_one_direction, only_adapters_import_frameworks, modules_have_a_docstring,
    files_are_short, classes_and_functions_are_short, c_lines_are_narrow,
]
