"""SG603: layers in a plain Python list, which no optimizer ever gets."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import TRAINING, Check, at
from steadygrad.lint.diagnostic import Diagnostic, Fix, Severity
from steadygrad.lint.module import Function, Module, dotted, tail
from steadygrad.lint.rewriting import rewrite

_WITH_PARAMETERS = frozenset(
    [
        "Linear",
        "Bilinear",
        "LazyLinear",
        "Conv1d",
        "Conv2d",
        "Conv3d",
        "ConvTranspose1d",
        "ConvTranspose2d",
        "ConvTranspose3d",
        "Embedding",
        "EmbeddingBag",
        "LSTM",
        "GRU",
        "RNN",
        "LSTMCell",
        "GRUCell",
        "RNNCell",
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm3d",
        "LayerNorm",
        "GroupNorm",
        "RMSNorm",
        "MultiheadAttention",
        "TransformerEncoderLayer",
        "TransformerDecoderLayer",
    ]
)
_REGISTERS = (
    "ModuleList",
    "ModuleDict",
    "Sequential",
    "ParameterList",
    "add_module",
    "register_module",
    "register_parameter",
    "setattr",
)


def find(module: Module) -> Iterator[Diagnostic]:
    if not module.imports("torch"):
        return
    for home in module.nodes(ast.ClassDef):
        init = next((n for n in home.body if _is_init(n)), None)
        if init is None or not any(tail(base) == "Module" for base in home.bases):
            continue
        for name, value in _lists(module, init):
            if not _registered(module, home, name):
                yield at(
                    value,
                    "SG603",
                    Severity.WARNING,
                    f"The layers in `{name}` stand in a plain list: parameters() does not see "
                    "them, and no optimizer trains them. Use nn.ModuleList.",
                    _fix(module, value),
                )


def _is_init(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "__init__"


def _lists(module: Module, init: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """Attributes that `__init__` sets to a list of layers."""
    empty: dict[str, ast.expr] = {}
    for node in ast.walk(init):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            name = dotted(node.targets[0])
            if not name.startswith("self.") or name.count(".") != 1:
                continue
            if isinstance(node.value, ast.List) and not node.value.elts:
                empty[name] = node.value
            elif _is_list_of_layers(module, node.value):
                yield name, node.value
    for call in module.calls:
        name = dotted(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if tail(call.func) == "append" and name in empty and call.args:
            home: ast.Module | Function = module.function(call)
            if home is init and _is_layer(module, call.args[0]):
                yield name, empty.pop(name)


def _is_list_of_layers(module: Module, node: ast.expr) -> bool:
    if isinstance(node, ast.ListComp):
        return _is_layer(module, node.elt)
    return isinstance(node, ast.List) and bool(node.elts) and _is_layer(module, node.elts[0])


def _is_layer(module: Module, node: ast.expr) -> bool:
    """Whether a value is one of torch.nn's layers with parameters, or a Sequential of such."""
    if not isinstance(node, ast.Call):
        return False
    full = module.full_name(node.func)
    if not full.startswith("torch.nn."):
        return False
    if tail(node.func) == "Sequential":
        return any(_is_layer(module, part) for part in node.args)
    return tail(node.func) in _WITH_PARAMETERS


def _registered(module: Module, home: ast.ClassDef, name: str) -> bool:
    """Whether the class hands the list, or its elements, to something that registers them."""
    for node in ast.walk(home):
        if isinstance(node, ast.Call):
            if tail(node.func) in (
                "add_module",
                "register_module",
                "register_parameter",
                "setattr",
            ):
                return True
            if tail(node.func) in _REGISTERS and any(
                dotted(part) == name
                for value in node.args
                for part in ast.walk(value)
                if isinstance(part, ast.Attribute)
            ):
                return True
        if isinstance(node, ast.FunctionDef) and node.name in ("parameters", "named_parameters"):
            return True
    text = f"{name.removeprefix('self.')}"
    outside = [n for n, at in module.assignments.items() if n.endswith(f".{text}") for _ in at]
    return len(outside) > 1


def _fix(module: Module, value: ast.expr) -> Fix | None:
    root = next((n for n, full in module.imported.items() if full == "torch.nn"), "")
    if not root:
        return None
    return rewrite(module, value, f"{root}.ModuleList({module.source(value)})", "use ModuleList")


CHECK = Check(
    "SG603",
    "layers in a plain list",
    proves="an nn.Module's __init__ sets an attribute to a list of torch.nn layers with "
    "parameters, and nothing in the class registers them",
    assumes="the layers are meant to be trained",
    find=find,
    fixable=True,
    words=TRAINING + r"|\[\s*(?:torch\.)?nn\.|append\(\s*(?:torch\.)?nn\.",
)
