"""Seeded faults in sources: one operator a check of `steadygrad.lint`, by lines of the text.

An operator takes a sound script and gives the same script with one mistake, or None where the
script has nothing that this mistake could be made in.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Operator = Callable[[str], "str | None"]

_CLIP = r"clip_grad_norm_\("
_BACKWARD = r"\.backward\("
_STEP = r"(?<!scaler)(?<!scheduler)\.step\(|scaler\.step\("
_CLEAR = r"\.zero_grad\("


def _find(lines: list[str], pattern: str) -> int | None:
    return next((i for i, line in enumerate(lines) if re.search(pattern, line)), None)


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _moved(text: str, what: str, to: str, *, behind: bool = False) -> str | None:
    """Take the first line that matches one pattern to before, or behind, the first of another."""
    lines = text.split("\n")
    source, target = _find(lines, what), _find(lines, to)
    if source is None or target is None or lines[source].count("(") != lines[source].count(")"):
        return None
    line = _indent(lines[target]) + lines[source].lstrip()
    lines[source : source + 1] = []
    target -= source < target
    lines.insert(target + behind, line)
    return "\n".join(lines)


def _replaced(text: str, pattern: str, by: str) -> str | None:
    changed = re.sub(pattern, by, text)
    return changed if changed != text else None


def _inserted(text: str, pattern: str, line: str) -> str | None:
    """Put a line behind the first one that matches, at its indentation."""
    lines = text.split("\n")
    place = _find(lines, pattern)
    if place is None or lines[place].count("(") != lines[place].count(")"):
        return None
    lines.insert(place + 1, _indent(lines[place]) + line)
    return "\n".join(lines)


def _without(text: str, pattern: str) -> str | None:
    lines = text.split("\n")
    left = [line for line in lines if not re.search(pattern, line)]
    return "\n".join(left) if len(left) < len(lines) else None


def _before_backward(text: str) -> str | None:
    if "% " in text:
        return None
    return _moved(text, _CLIP, _BACKWARD)


def _after_step(text: str) -> str | None:
    if "scaler.update" in text or "% " in text or "def closure" in text:
        return None
    return _moved(text, _CLIP, _STEP, behind=True)


def _micro_batch(text: str) -> str | None:
    if not re.search(r"if .*% ", text):
        return None
    return _moved(text, _CLIP, _BACKWARD, behind=True)


def _part(text: str) -> str | None:
    part = re.search(r"self\.(\w+) = nn\.(?:Linear|LSTM|GRU|Embedding)", text)
    whole = re.search(r"Adam\w*\((\w+)\.parameters\(\)|SGD\((\w+)\.parameters\(\)", text)
    if not part or not whole:
        return None
    model = whole[1] or whole[2]
    return _replaced(
        text, rf"(clip_grad_norm_\(){model}\.parameters", rf"\g<1>{model}.{part[1]}.parameters"
    )


def _twice(text: str) -> str | None:
    lines = text.split("\n")
    place = _find(lines, _CLIP)
    if place is None or lines[place].count("(") != lines[place].count(")"):
        return None
    lines.insert(place, _indent(lines[place]) + re.sub(r"^\s*\w+ = ", "", lines[place]).lstrip())
    return "\n".join(lines)


def _layer_list(text: str) -> str | None:
    return _replaced(text, r"nn\.ModuleList\((\[.*\]|.* for .* in range\(\w+\))\)", r"\1")


def _stale(text: str) -> str | None:
    made = re.search(
        r"^( *)\w+ = .*(?:Adam\w*|SGD)\((\w+)\.parameters\(\).*\)$", text, re.MULTILINE
    )
    if not made:
        return None
    return _inserted(text, re.escape(made[0]), f"{made[2]}.head = torch.nn.Linear(8, 8)")


def _softmax(text: str) -> str | None:
    return _replaced(
        text, r"(F\.cross_entropy|functional\.cross_entropy)\((\w+)(?=,)", r"\1(\2.softmax(-1)"
    )


def _threshold(by: str) -> Operator:
    def operator(text: str) -> str | None:
        return _replaced(text, r"(clip_grad_norm_\(.*?, )(?:max_norm=)?[\d.]+\)", rf"\g<1>{by})")

    return operator


def _generator(text: str) -> str | None:
    made = re.search(r"^( *)(\w+ = .*(?:Adam\w*|SGD)\()(\w+)\.parameters\(\)", text, re.MULTILINE)
    if not made or f"clip_grad_norm_({made[3]}.parameters()" not in text:
        return None
    bound = f"{made[1]}weights = {made[3]}.parameters()\n{made[1]}{made[2]}weights"
    text = text.replace(made[0], bound, 1)
    return text.replace(f"clip_grad_norm_({made[3]}.parameters()", "clip_grad_norm_(weights", 1)


def _gradients(text: str) -> str | None:
    return _replaced(
        text,
        r"clip_grad_norm_\((\w+(?:\.\w+)?)\.parameters\(\)",
        r"clip_grad_norm_([p.grad for p in \1.parameters()]",
    )


def _logged_after(text: str) -> str | None:
    line = "after = sum(p.grad.norm() ** 2 for g in optimizer.param_groups for p in g['params'])"
    text = re.sub(r"\w+ = ((?:\w+\.)*clip_grad_norm_)", r"\1", text)
    return _inserted(text, _CLIP, line)


def _cleared_early(text: str) -> str | None:
    return None if "% " in text else _moved(text, _CLEAR, _BACKWARD, behind=True)


def _read_norm(text: str) -> str | None:
    before = text.split("clip_grad_norm_(")[0].split("for ")[-1]
    if "if " in before or "def " in before:
        return None
    return _replaced(
        text,
        r"^( *)((?:\w+\.)*clip_grad_norm_\(.*\))$".replace("^", "(?m)^"),
        r"\1norm = \2\n\1print(norm.item())",
    )


def _kept_loss(text: str) -> str | None:
    return _replaced(text, r"(\w+ \+= loss)\.item\(\)", r"\1")


def _scheduled(text: str) -> str | None:
    return _moved(text, r"scheduler\.step\(\)", r"optimizer\.step\(\)", behind=True)


def _tf_after(text: str) -> str | None:
    return _moved(
        text, r"gradients, \w+ = tf\.clip_by_global_norm", r"apply_gradients", behind=True
    )


def _tf_unused(text: str) -> str | None:
    return _replaced(text, r"gradients, (\w+) = (tf\.clip_by_global_norm)", r"clipped, \1 = \2")


def _tf_logged(text: str) -> str | None:
    line = "print(tf.linalg.global_norm(gradients))"
    return _inserted(text, r"gradients, \w+ = tf\.clip_by_global_norm", line)


def _two_keywords(text: str) -> str | None:
    return _replaced(text, r"global_clipnorm=", "clipvalue=0.5, global_clipnorm=")


def _per_tensor(text: str) -> str | None:
    return _replaced(text, r"global_clipnorm=", "clipnorm=")


def _chain_order(text: str) -> str | None:
    return _replaced(
        text,
        r"optax\.chain\((optax\.clip_by_global_norm\([\d.]+\)), (optax\.adam\(.*?\))\)",
        r"optax.chain(\2, \1)",
    )


def _chain_twice(text: str) -> str | None:
    return _replaced(text, r"(optax\.clip_by_global_norm\([\d.]+\)), ", r"\1, \1, ")


def _multi_steps_inside(text: str) -> str | None:
    return _replaced(
        text, r"(optax\.chain\(.*?, )(optax\.adam\(.*?\))\)", r"\1optax.MultiSteps(\2, 4))"
    )


def _trainer_off(text: str) -> str | None:
    return _replaced(text, r"max_grad_norm=[\d.]+", "max_grad_norm=0")


OPERATORS: tuple[tuple[str, Operator], ...] = (
    ("SG404", _before_backward),
    ("SG405", _after_step),
    ("SG405", _tf_after),
    ("SG406", lambda text: _without(text, r"unscale_\(")),
    ("SG407", _micro_batch),
    ("SG407", _multi_steps_inside),
    ("SG408", _part),
    ("SG409", _twice),
    ("SG409", _chain_twice),
    ("SG410", _gradients),
    ("SG411", _threshold('float("inf")')),
    ("SG504", _logged_after),
    ("SG504", _tf_logged),
    ("SG601", lambda text: _without(text, _CLEAR)),
    ("SG602", _cleared_early),
    ("SG603", _layer_list),
    ("SG604", _stale),
    ("SG605", _scheduled),
    ("SG606", _softmax),
    ("SG701", _read_norm),
    (
        "SG702",
        lambda text: _replaced(text, r"(?<=nn\.utils\.)clip_grad_norm_\(", "clip_grad_norm("),
    ),
    (
        "SG703",
        lambda text: _replaced(
            text, r"clip_grad_norm_\((.*), [\w.]+\)", r"clip_grad_value_(\1, 1.0)"
        ),
    ),
    ("SG704", _kept_loss),
    ("SG705", _trainer_off),
    ("SG706", _threshold("-1.0")),
    ("SG707", _two_keywords),
    ("SG708", _per_tensor),
    ("SG709", _tf_unused),
    ("SG710", _generator),
    ("SG711", _chain_order),
)
"""(id of the check that must speak, the mistake)."""
