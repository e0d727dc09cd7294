"""What a run file says about the run without being told, and what it never says.

No environment variable is read. A command line may carry a token, so only arguments that are
harmless by their form are written.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
import unicodedata
from collections.abc import Sequence

from steadygrad import extensions
from steadygrad._version import __version__

BLOT = "***"
_SECRET = re.compile(
    r"token|secret|pass|pwd|\bpw\b|\bpin\b|\botp\b|\bpsk\b|\bpat\b|\bdsn\b|cred|\bkey\b|[-_]key|apikey"
    r"|(?-i:[a-z]Key\b)|auth\b"
    r"|oauth|access|bearer|\bjwt|cookie|session|private|signature|signing|\bsig\b|licen[cs]e|webhook"
    r"|login|mnemonic|\bsalt\b|[-_]phrase|\bphrase\b|contraseña|kennwort|senha|пароль|密码|密碼",
    re.IGNORECASE,
)
_NUMBER = r"[-+]?\d{0,12}\.?\d{1,12}(?:e[-+]?\d{1,3})?"
_HARMLESS = re.compile(
    rf"{_NUMBER}(?:,{_NUMBER}){{0,3}}"
    r"|[a-z]{1,12}(?:[-_][a-z]{1,12}){0,3}"  # adamw, mean-squared-error
    r"|[A-Z]{1,8}(?:_[A-Z]{1,8})?|(?:[A-Z][a-z]{1,11}){1,2}[A-Z]{0,2}"  # RNN_TANH, ResNet, AdamW
    r"|True|False|None|(?:cuda|mps|xla|cpu|gpu|tpu):\d{1,2}|(?:bf|fp|tf|int|float|uint)\d{1,2}",
)
_OPTION = re.compile(
    r"-[A-Za-z]\d?|-[a-z]{2,5}|--?[A-Za-z]{1,20}(?:[-_.][A-Za-z]{1,20}){0,4}\d{0,2}"
)
_SETTING = re.compile(r"[+~]{0,2}@?[A-Za-z_]{1,24}(?:[._/][A-Za-z_]{1,24}){0,5}\d{0,2}")
"""A name before an equals sign: an option's, a variable's, or a path into a configuration."""
LONGEST = 64


def basic_facts() -> dict[str, object]:
    """The facts that hold for every run: versions, platform, command line, start, kernel."""
    return {
        "steadygrad": __version__,
        "python": platform.python_version(),
        "platform": system(),
        "command": list(sys.argv),
        "started": time.time(),
        "kernel": extensions.install_state(),
    }


def system() -> str:
    """Operating system, its release and the machine's kind, as in ``Linux-6.1.0-x86_64``.

    `platform.platform()` starts a process to learn the processor's name: a child that the script
    did not start, with its signal, and Python forgets which warnings it has shown.
    """
    names = platform.uname()
    return f"{names.system}-{names.release}-{names.machine}"


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of packages, of those that are imported.

    Example:
        >>> import numpy
        >>> versions_of("numpy", "no_such_package") == {"numpy": numpy.__version__}
        True
    """
    return {name: str(sys.modules[name].__version__) for name in packages if name in sys.modules}


def without_secrets(command: Sequence[object], folder: str | os.PathLike[str] = ".") -> list[str]:
    """A command line of which only what is harmless by its form is left.

    That is: the program, names of options, numbers, booleans, short words without digits, and
    names of files that are there; and none of these behind a name that speaks of a secret. A list
    of what secrets look like could never be whole.

    Args:
        command: the program and its arguments, as `sys.argv` has them.
        folder: where the script's files are.

    Example:
        >>> without_secrets(["train.py", "--lr=0.1", "--api-key", "abc", "--tag", "Exp7"])
        ['train.py', '--lr=0.1', '--api-key', '***', '--tag', '***']
    """
    words = list(map(str, command))
    program = 1
    if words and os.path.basename(words[0]).startswith("python"):
        program = 3 if words[1:2] == ["-m"] else 2
    return words[:program] + harmless(words[program:], folder)


def harmless(arguments: Sequence[str], folder: str | os.PathLike[str] = ".") -> list[str]:
    """`without_secrets` for arguments alone.

    Example:
        >>> harmless(["--lr", "1e-3", "model.depth=4", "-u", "bob:hunter2"])
        ['--lr', '1e-3', 'model.depth=4', '-u', '***']
    """
    shown: list[str] = []
    behind_secret = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        secret = _speaks_of_secret(name)
        if equals and (_OPTION.fullmatch(name) or _SETTING.fullmatch(name)):
            shown.append(f"{name}={BLOT if secret or not _is_harmless(value, folder) else value}")
            behind_secret = not secret and _speaks_of_secret(value)
        elif _names_option(argument) and not (behind_secret and not argument.startswith("--")):
            shown.append(argument)
            behind_secret = secret
        else:
            # an option that nobody can read may ask for a secret
            unread = argument.startswith("-") and not _is_number(argument)
            blots = behind_secret or not _is_harmless(argument, folder)
            shown.append(BLOT if blots else argument)
            behind_secret = not behind_secret and (unread if blots else secret)
    return shown


def _speaks_of_secret(name: str) -> bool:
    return bool(_SECRET.search(unicodedata.normalize("NFKC", name)))


def _is_number(argument: str) -> bool:
    return bool(re.fullmatch(_NUMBER, argument, re.IGNORECASE))


def _names_option(argument: str) -> bool:
    return bool(_OPTION.fullmatch(argument)) and not _is_number(argument)


def _is_harmless(value: str, folder: str | os.PathLike[str]) -> bool:
    if len(value) > LONGEST or not value.isprintable():
        return False
    return not value or bool(_HARMLESS.fullmatch(value)) or _is_there(value, folder)


def _is_there(value: str, folder: str | os.PathLike[str]) -> bool:
    """Whether a relative path names a file; an absolute one may be on a disk that hangs."""
    if os.path.isabs(value) or ".." in value or ":" in value or "\\" in value:
        return False
    return any(os.path.lexists(os.path.join(place, value)) for place in (folder, "."))
