"""Shell commands in documentation: found, taken apart, and matched with the programs they start."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

SEPARATORS = {"&&", "||", ";", "|", "&"}


def blocks(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every fenced shell block of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(?:sh|bash|console|shell)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start(1)) + 1, match[1]


def indented(path: Path) -> list[str]:
    """Lines of indented code that start a program."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^ {4,}((?:\S*python3?|ray|sbatch|\S*pip) .*)$", text, re.MULTILINE)


def commands(text: str) -> list[str]:
    """The command lines of a shell block, without comments; continued lines are one."""
    lines = map(_uncommented, text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line]


def _uncommented(line: str) -> str:
    """A line up to its comment: a # that begins a word outside quotes."""
    quote = ""
    for i, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (i == 0 or line[i - 1].isspace()):
            return line[:i].strip()
    return line.strip()


def simple_commands(command: str) -> list[list[str]]:
    """The words of each simple command of a command line; commands given in quotes to others included."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in SEPARATORS:
            found.append([])
        else:
            found[-1].append(word)
    found = [words for words in found if words]
    nested = [word for words in found for word in words if " && " in word or "launch.py " in word]
    return found + [inner for word in nested for inner in simple_commands(word)]


def program(words: list[str]) -> tuple[str, list[str]] | None:
    """(program of this project, its arguments) where a simple command starts one."""
    for i, word in enumerate(words):
        if word.endswith("launch.py"):
            return "launch.py", words[i + 1 :]
        if word.endswith("slurm.sbatch"):  # passes its arguments on
            return "launch.py", words[i + 1 :]
        if word == "-m" and i and "python" in words[i - 1]:
            return words[i + 1], words[i + 2 :]
    return None
