"""The rules that hold for the whole tree: what imports what, and what the package promises."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import steadygrad

SRC = Path(steadygrad.__file__).parent
ROOT = SRC.parent.parent

sys.path.insert(0, str(ROOT / "tools"))

import any_share  # noqa: E402
import import_cycles  # noqa: E402

ANY_SHARE = 0.05
"""Share of annotations that may hold `Any`; it only goes down."""

FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "optax")

# Imports run from a higher floor to the same or a lower one.
FLOORS = {
    "errors": 0,
    "stats": 0,
    "robust": 0,
    "text": 0,
    "typing": 0,
    "vocabulary": 0,
    "_version": 0,
    "invisible": 0,
    "extensions": 0,
    "policies": 1,
    "kernels": 1,
    "runlog": 1,
    "rules": 1,
    "lint": 1,
    "notebook": 0,
    "calibration": 1,
    "recovery": 1,
    "torch": 2,
    "tensorflow": 2,
    "keras": 2,
    "jax": 2,
    "sinks": 2,
    "live": 2,
    "launch": 3,
    "report": 2,
    "watch": 3,
    "serve": 3,
    "integrations": 3,
    "demos": 3,
    "compare": 3,
    "cli": 4,
}

FRAMEWORK_FREE = [
    "",
    "runlog",
    "rules",
    "calibration",
    "policies",
    "stats",
    "errors",
    "report",
    "recovery",
    "cli",
]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_after(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sorted(set({FRAMEWORKS!r}) & set(sys.modules)))"
    return set(python(code).split())


@pytest.mark.parametrize("part", FRAMEWORK_FREE)
def test_importing_loads_no_framework(part: str) -> None:
    assert loaded_after(f"steadygrad.{part}".rstrip(".")) == set()


def test_the_framework_check_can_fail() -> None:
    assert "torch" in loaded_after("steadygrad.torch")


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert python(
        "import sys, steadygrad; print('numpy' in sys.modules, 'rich' in sys.modules)"
    ) == ("False False")


def imports_of(path: Path) -> set[str]:
    """Top-level parts of steadygrad that a file imports, at any depth of its code."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            if node.module == "steadygrad":
                names = [f"steadygrad.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {n.split(".")[1] for n in names if n.startswith("steadygrad.")}
    return parts


def upward_imports(files: dict[str, set[str]]) -> list[str]:
    bad = []
    for name, parts in files.items():
        home = name.split("/")[0].removesuffix(".py")
        bad += [f"{name} -> {p}" for p in parts if p in FLOORS and FLOORS[p] > FLOORS[home]]
    return bad


def test_imports_run_one_way() -> None:
    files = {
        str(path.relative_to(SRC)): imports_of(path)
        for path in SRC.rglob("*.py")
        if path.parent != SRC or path.stem in FLOORS
    }
    assert {name.split("/")[0].removesuffix(".py") for name in files} <= set(FLOORS)
    assert upward_imports(files) == []


def test_the_import_check_can_fail() -> None:
    assert upward_imports({"stats.py": {"torch"}}) == ["stats.py -> torch"]


def test_no_cycle_between_files() -> None:
    assert import_cycles.find() == []


def test_a_cycle_is_found_wherever_its_imports_stand(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "room").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "room/__init__.py": "from house.room.table import legs",
        "room/table.py": "def legs():\n    from house import chair",
        "chair.py": "if TYPE_CHECKING:\n    import house.lamp",
        "lamp.py": "from .room.table import legs",
        "door.py": "from house import lamp\nimport os",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    assert import_cycles.find(package) == [["house.chair", "house.lamp", "house.room.table"]]


def test_any_stays_rare() -> None:
    with_any, slots = (sum(figures) for figures in zip(*any_share.count().values(), strict=True))
    assert with_any / slots <= ANY_SHARE


def test_any_is_noticed_wherever_it_stands(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "file.py").write_text("def f(a: dict[str, Any], b: int, c: 'Any') -> Any: ...")
    assert any_share.count(tmp_path) == {"room": (3, 4)}


MAY_SAY_ANY = {
    "",
    *("compare", "demos", "integrations", "kernels", "live", "policies", "report", "rules"),
    *("rules/evidence", "runlog", "serve", "sinks"),
    *("launch", "launch/keras_script", "launch/tensorflow_script", "launch/torch_script"),
    *(f"torch/{r}" for r in ("clip_calls", "distributed", "dropins", "gradients", "internals")),
    *(f"torch/{r}" for r in ("origin", "record", "recovery", "step")),
}
"""Folders with an `Any` left; in every other it is forbidden, and none is added here."""


def folders_that_say_any(package: Path) -> set[str]:
    """Folders with a file that imports `Any`."""
    folders = set()
    for path in package.rglob("*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        if any(alias.name == "Any" for node in nodes for alias in node.names):
            folders.add(str(path.parent.relative_to(package)).replace("\\", "/").lstrip("."))
    return folders


def test_any_is_forbidden_folder_by_folder() -> None:
    assert folders_that_say_any(SRC) == MAY_SAY_ANY


def test_a_folder_that_says_any_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "file.py").write_text("from typing import Any, cast")
    (tmp_path / "clean.py").write_text("from typing import cast")
    assert folders_that_say_any(tmp_path) == {"room"}


SAME_IN_SEVERAL_FRAMEWORKS = {"Steady", "SteadyGradCallback"}
"""Names that users type, of classes that are the same thing for another framework or trainer."""


def shared_names(package: Path) -> dict[str, list[str]]:
    """Classes of one name in several files, and modules named as what their package exports."""
    places: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        name = str(path.relative_to(package))
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
        if path.name == "__init__.py":
            shadowed = exported(tree) & {p.stem for p in path.parent.iterdir()}
            places.update({f"module {each}": [name, f"{each}.py"] for each in shadowed})
    return {name: files for name, files in places.items() if len(files) > 1}


def exported(tree: ast.Module) -> set[str]:
    """Names in a module's `__all__`."""
    lists = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    words = [node for each in lists for node in ast.walk(each) if isinstance(node, ast.Constant)]
    return {str(word.value) for word in words}


def test_one_name_is_one_thing() -> None:
    shared = shared_names(SRC)
    assert {k: v for k, v in shared.items() if k not in SAME_IN_SEVERAL_FRAMEWORKS} == {}


def test_a_name_of_two_things_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text("__all__ = ['door', 'Lamp']")
    (tmp_path / "room" / "door.py").write_text("class Lamp: ...")
    (tmp_path / "lamp.py").write_text("def f():\n    class Lamp: ...")
    assert shared_names(tmp_path) == {
        "Lamp": ["lamp.py", "room/door.py"],
        "module door": ["room/__init__.py", "door.py"],
    }


PUBLIC = [
    "steadygrad",
    *(
        f"steadygrad.{p}"
        for p in ("policies", "runlog", "rules", "calibration", "torch", "kernels")
    ),
    *(f"steadygrad.{p}" for p in ("tensorflow", "jax", "report", "sinks")),
]


@pytest.mark.parametrize("module", PUBLIC)
def test_all_is_true(module: str) -> None:
    loaded = importlib.import_module(module)
    names = loaded.__all__
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(loaded, name) is not None


def test_the_changelog_leads_with_this_version() -> None:
    top = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert top is not None
    assert top.group(1) == steadygrad.__version__


def test_every_error_is_one_family() -> None:
    from steadygrad import errors

    members = [m for m in vars(errors).values() if isinstance(m, type)]
    for member in members:
        base = errors.SteadyGradWarning if issubclass(member, Warning) else errors.SteadyGradError
        assert issubclass(member, base)
        assert member.__name__ in (errors.__doc__ or "")


def mixed_tuples(source: str) -> list[str]:
    """Classes that have a base beside NamedTuple: Python 3.10 refuses them at import."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    bases = {node.name: [ast.unparse(base) for base in node.bases] for node in classes}
    return [name for name, each in bases.items() if "NamedTuple" in each and len(each) > 1]


def test_no_class_is_one_that_the_oldest_python_refuses() -> None:
    assert mixed_tuples("class A(NamedTuple, Generic[T]): pass\nclass B(NamedTuple): pass") == ["A"]
    sources = {path.name: mixed_tuples(path.read_text()) for path in SRC.rglob("*.py")}
    assert {name: classes for name, classes in sources.items() if classes} == {}


VAGUE = {"found", "known", "given", "held", "kept", "told"}
"""Words that do not say what a name holds."""

KEYS_OF_FILES = {"report/model.py: told", "runlog/info.py: held"}
"""Keys of the report's JSON and of run files, which stay as they are."""


def vague_names(package: Path) -> set[str]:
    """Functions, classes, arguments, variables and attributes that are called by such a word."""
    vague = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    pass
                case ast.ClassDef(name=name) | ast.arg(arg=name):
                    pass
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    pass
                case _:
                    continue
            if name.strip("_") in VAGUE:
                vague.add(f"{path.relative_to(package).as_posix()}: {name}")
    return vague


def test_names_say_what_they_hold() -> None:
    assert vague_names(SRC) == KEYS_OF_FILES


def test_a_vague_name_is_noticed_wherever_it_stands(tmp_path: Path) -> None:
    source = (
        "def found(known): given = self._held = known\nfor x, kept in y: pass\nclass told: pass"
    )
    (tmp_path / "file.py").write_text(source)
    names = {"found", "known", "given", "_held", "kept", "told"}
    assert vague_names(tmp_path) == {f"file.py: {name}" for name in names}


ENGINES = {"Engine", "Host"}
"""What an optimizer's steps are driven by, under the names that its users have for its class."""


def is_any_of(node: ast.expr, names: set[str]) -> bool:
    """Whether an expression ends in one of these names, as ``self._engine``, or calls it."""
    node = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(node).rpartition(".")[2] in names


def pairs_of(target: ast.expr, value: ast.expr | None) -> list[tuple[ast.expr, ast.expr]]:
    """What an assignment binds to what."""
    if value is None:
        return []
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


def names_of(tree: ast.Module, classes: set[str]) -> set[str]:
    """What a source calls its objects of some classes, by annotation or by assignment."""
    nodes = list(ast.walk(tree))
    annotated = [node for node in nodes if isinstance(node, ast.arg) and node.annotation]
    names = {
        node.arg
        for node in annotated
        if classes & set(re.findall(r"\w+", ast.unparse(node.annotation or node)))
    }
    pairs = [
        pair
        for node in nodes
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for pair in pairs_of(target, node.value)
    ]
    for _ in range(3):  # what a name is bound to may be bound further down
        bound = [target for target, value in pairs if is_any_of(value, names | classes)]
        names |= {ast.unparse(target).rpartition(".")[2] for target in bound}
    return names


def writers_of(source: str, classes: set[str]) -> list[str]:
    """Where a source sets or deletes attributes of an object of some classes."""
    tree = ast.parse(source)
    names, writers = names_of(tree, classes), []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, ctx=ast.Store() | ast.Del()):
                pass
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[owner, *_]):
                pass
            case _:
                continue
        if is_any_of(owner, names):
            writers.append(ast.unparse(node))
    return sorted(writers)


def test_nobody_else_writes_into_the_engine() -> None:
    paths = [path for path in (SRC / "torch").rglob("*.py") if path.name != "engine.py"]
    written = {path.name: writers_of(path.read_text(), ENGINES) for path in paths}
    assert {name: attributes for name, attributes in written.items() if attributes} == {}
    assert "Engine(" in (SRC / "torch/step/handle.py").read_text()


def test_a_writer_into_the_engine_is_noticed_whatever_it_calls_it() -> None:
    source = """
class Handle:
    def __init__(self, other: Host | None, mine: "Engine"):
        self._engine = Engine()
        other.steps, self.x = 1, 2
        mine.step: int = 3
    def act(self):
        inner, far = self._engine, 1
        inner.memory = far.step = self.steps = inner.clipper.state = 4
        if (same := inner):
            same.clipper += 5
        del same.step
        setattr(self._engine, "step", None)
"""
    assert writers_of(source, ENGINES) == [
        "inner.memory",
        "mine.step",
        "other.steps",
        "same.clipper",
        "same.step",
        "setattr(self._engine, 'step', None)",
    ]


OF_NO_ONE_FILE = 0.25
"""Share of the test files that may be named after a behaviour, which several files make."""


def is_named_after(name: str, room: Path) -> bool:
    """Whether tests called by a name are of a room, or of something that stands in it.

    ``clipper`` of clipper.py, ``origin`` of the folder, ``sg4`` of all files that begin so, and
    ``huggingface_trl`` of huggingface.py, whose tests fill several files.
    """
    entries = {each.name.split(".")[0] for each in room.iterdir()} - {"__init__", "__pycache__"}
    beginnings = {name, *(name[: match.start()] for match in re.finditer("_", name))}
    is_start = re.fullmatch(r"[a-z]+\d+", name) and any(each.startswith(name) for each in entries)
    return name == room.name or bool(beginnings & entries) or bool(is_start)


def files_tested(tests: Path, package: Path) -> set[Path]:
    """Files of the package that a file of tests imports; what it goes through a door for is none.

    A door is a folder's own name, as in ``from steadygrad import runlog``.
    """
    names = set()
    for node in ast.walk(ast.parse(tests.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    dotted = [name.split(".")[1:] for name in names if name.split(".")[0] == package.name]
    paths = {package.joinpath(*parts).with_suffix(".py") for parts in dotted if parts}
    return {path for path in paths if path.is_file()}


def goes_through_a_door(tests: Path, package: Path) -> bool:
    """Whether tests use what a folder of the package exports."""
    source = tests.read_text()
    words = re.findall(rf"^(?:from|import) ({package.name}[\w.]*)", source, re.MULTILINE)
    return any(package.parent.joinpath(*word.split(".")).is_dir() for word in words)


def misplaced_tests(tests: Path, package: Path) -> tuple[list[str], list[str], list[str]]:
    """Test files in a folder that the package lacks, those of a behaviour, those of one file.

    The last are named after a behaviour, too, and use nothing but a single file.
    """
    lost, behaviours, of_one = [], [], []
    for path in sorted(tests.rglob("test_*.py")):
        folder, name = path.parent.relative_to(tests), path.relative_to(tests).as_posix()
        room = package / folder
        if not room.is_dir():
            lost.append(name)
        elif not is_named_after(path.stem.removeprefix("test_"), room):
            alone = len(files_tested(path, package)) == 1 and not goes_through_a_door(path, package)
            (of_one if alone else behaviours).append(name)
    return lost, behaviours, of_one


def test_tests_stand_where_what_they_test_stands() -> None:
    tests = Path(__file__).parent
    lost, behaviours, of_one = misplaced_tests(tests, SRC)
    assert lost == []
    assert of_one == []
    assert len(behaviours) <= OF_NO_ONE_FILE * len(list(tests.rglob("test_*.py"))), behaviours


def test_a_test_that_stands_elsewhere_is_noticed(tmp_path: Path) -> None:
    tests, package = tmp_path / "tests", tmp_path / "house"
    for name in ("__init__.py", "room/chair.py", "room/ab12_x.py", "room/bed.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    sources = {
        "test_house.py": "",
        "room/test_room.py": "",
        "room/test_chair.py": "",
        "room/test_chair_legs.py": "",
        "room/test_ab12.py": "",
        "hut/test_a.py": "",
        "room/test_habit.py": "from house.room import chair\nfrom house.room.bed import pillow",
        "room/test_guests.py": "from house.room.chair import legs\nfrom house import room",
        "room/test_cha.py": "from os import path\nfrom house.room.chair import legs",
        "room/test_legs_of_chair.py": "import house.room.chair",
    }
    for name, source in sources.items():
        (tests / name).parent.mkdir(parents=True, exist_ok=True)
        (tests / name).write_text(source)
    lost, behaviours, of_one = misplaced_tests(tests, package)
    assert lost == ["hut/test_a.py"]
    assert behaviours == ["room/test_guests.py", "room/test_habit.py"]
    assert of_one == ["room/test_cha.py", "room/test_legs_of_chair.py"]


ENTRY = re.compile(r"(?<![\w<>.])[\w./]*\w(?:\.py\b|/(?![\w<]))|(?<![\w<>.])\w+/(?=<)")
"""A file, or a folder as ``room/``, in the tree that docs/architecture.md draws."""


def drawn_tree(text: str, root: Path) -> tuple[set[str], set[str]]:
    """What a drawn tree names: paths that exist below a root, and names that stand for nothing."""
    paths, lost = set(), set()
    above: list[Path] = []
    for line in text.splitlines():
        depth, names = (len(line) - len(line.lstrip())) // 2, ENTRY.findall(line)
        if depth <= len(above) and line.split()[0].rstrip(",") in names:  # else it goes on
            above[depth:] = [(above[depth - 1] if depth else root) / names[0]]
        for name in names:
            homes = (above[-1].parent, above[-1], root)
            place = next((home / name for home in homes if (home / name).exists()), None)
            lost |= {name} if place is None else set()
            paths |= set() if place is None else {place.relative_to(root).as_posix()}
    return paths, lost


def packages_and_modules() -> set[str]:
    """Every package, and every module at the top, as paths below the repository's root."""
    packages = {path.parent for path in SRC.rglob("__init__.py")}
    modules = {path for path in SRC.glob("*.py") if not path.name.startswith("_")}
    return {path.relative_to(ROOT).as_posix() for path in packages | modules}


def test_the_tree_in_the_docs_is_the_tree() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawn, lost = drawn_tree(
        page.split("## The tree")[1].split("```")[1].removeprefix("text\n"), ROOT
    )
    assert lost == set()
    assert packages_and_modules() - drawn == set()


def test_a_tree_that_is_not_the_tree_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "house" / "room" / "shelf").mkdir(parents=True)
    (tmp_path / "house" / "door.py").touch()
    text = "house/\n  door.py   opens; gone.py\n  room/     with shelf/ and\n            lamp/\n"
    drawn, lost = drawn_tree(text, tmp_path)
    assert drawn == {"house", "house/door.py", "house/room", "house/room/shelf"}
    assert lost == {"gone.py", "lamp/"}


LIBRARIES = {"torch", "keras", "tensorflow", "tf", "jax", "jnp", "lax", "optax"}
INTERNALS = ("torch/internals/", "keras/internals.py", "launch/jax_script/internals.py")
"""Where private names of a framework stand, so that its release breaks no other file."""


def private_names(path: Path) -> list[str]:
    """Names of a framework with a part that begins with an underscore, as ``torch._C.x``."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names.append(ast.unparse(node))
    dotted = [(name, name.split(".")) for name in names if re.fullmatch(r"[\w.]+", name)]
    return [
        name
        for name, parts in dotted
        if parts[0] in LIBRARIES and any(re.match(r"_[A-Za-z]", part) for part in parts[1:])
    ]


def test_private_names_of_frameworks_stand_in_their_own_rooms() -> None:
    files = {path.relative_to(SRC).as_posix(): private_names(path) for path in SRC.rglob("*.py")}
    outside = {file: names for file, names in files.items() if not file.startswith(INTERNALS)}
    assert {file: names for file, names in outside.items() if names} == {}
    assert files["torch/internals/private.py"]


def test_a_private_name_is_noticed_however_it_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text(
        "import jax._src\nfrom torch._C import x\ntorch.nn._Y.z\ntorch.__version__\nself._q"
    )
    assert set(private_names(path)) == {"jax._src", "torch._C.x", "torch.nn._Y", "torch.nn._Y.z"}
