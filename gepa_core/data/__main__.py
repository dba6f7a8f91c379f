"""python -m gepa_core.data prepare | inspect | fetch"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from gepa_core.data import inspect, prepare
from gepa_core.errors import DataError, UserError, about_name
from gepa_core.invocation import launch


class Progress:
    """One line rewritten on a terminal; off a terminal, a line every few seconds. On stderr."""

    def __init__(self, period: float = 5.0) -> None:
        self.period = period
        self.last = 0.0
        self.terminal = sys.stderr.isatty()

    def __call__(self, message: str) -> None:
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{message}")
        elif time.monotonic() - self.last > self.period:
            sys.stderr.write(f"{message}\n")
            self.last = time.monotonic()
        sys.stderr.flush()

    def keep(self, message: str) -> None:
        """A line that stays in sight."""
        self.close()
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()

    def close(self) -> None:
        if self.terminal:
            sys.stderr.write("\r\x1b[K")


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return {"prepare": _prepare, "inspect": _inspect, "fetch": _fetch}[args.command](args)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except BrokenPipeError:  # `| head`
        return 0
    except OSError as error:
        sys.stderr.write(f"error: {about_name(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing half-done was left\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gepa_core.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    p = commands.add_parser("prepare", help="text -> shards, tokenizer and manifest")
    p.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help=".txt (or no ending), .md, .jsonl, .jsonl.zst, .parquet, or a folder of such files",
    )
    p.add_argument(
        "--corpus", choices=["docstrings"], help="instead of INPUT: the docstrings of installed packages"
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not exist")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--tokenizer", type=Path, metavar="FILE.model", help="a SentencePiece model to use")
    which.add_argument(
        "--vocab-size", type=int, metavar="N", help="pieces of a tokenizer to train on the text"
    )
    held_out = p.add_mutually_exclusive_group()
    held_out.add_argument("--val", nargs="+", type=Path, metavar="INPUT", help="validation text")
    held_out.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help=f"else: this share of the documents, by hash of their text (default {prepare.VAL_FRACTION})",
    )
    p.add_argument(
        "--text-key", default="text", metavar="KEY", help="JSON key or column of the text (default text)"
    )
    p.add_argument(
        "--split-on",
        metavar="TEXT",
        help=r"what stands between documents in text files, e.g. '<|endoftext|>' or '\n\n' (default: "
        "a file is a document, a long one is cut at line ends every 32,768 characters)",
    )
    p.add_argument(
        "--in-order",
        action="store_true",
        help="keep the documents in the order of the files (default: shuffle them, by a hash)",
    )
    p.add_argument(
        "--shard-tokens", type=int, default=prepare.SHARD_TOKENS, metavar="N", help="default %(default)s"
    )
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: the cores)")

    p = commands.add_parser("inspect", help="counts, fingerprint and bytes per token of shards")
    p.add_argument("data", metavar="DIR|PATTERN", help="a prepared folder, or shards by a glob pattern")
    p.add_argument(
        "--tokenizer", type=Path, metavar="FILE.model", help="for bytes per token of a bare PATTERN"
    )
    p.add_argument(
        "--val", metavar="PATTERN", help="validation shards whose documents are looked for in a bare PATTERN"
    )
    p.add_argument("--verify", action="store_true", help="rehash every file and look at every token")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")

    p = commands.add_parser("fetch", help="published FineWeb shards and tokenizer from the Hugging Face hub")
    p.add_argument("--variant", default="sp1024", help="sp1024, sp4096, ... (default %(default)s)")
    p.add_argument("--shards", type=int, metavar="N", help="training shards of 100 M tokens (default 80)")
    p.add_argument("--out", type=Path, metavar="DIR", help="default data/datasets/fineweb10B_VARIANT")
    p.add_argument("--repo", metavar="ID", help="another dataset repository of the same layout")
    p.add_argument("--revision", help="branch, tag or commit (default main, or what DIR holds)")
    p.add_argument(
        "--workers", type=int, default=4, metavar="N", help="parallel downloads (default %(default)s)"
    )
    return parser


def _prepare(args: argparse.Namespace) -> int:
    if bool(args.inputs) == bool(args.corpus):
        raise DataError("give either INPUT files or --corpus docstrings")
    if args.workers is not None and args.workers < 1:
        raise DataError(f"--workers {args.workers}: at least 1")
    say = Progress()
    started = time.monotonic()
    if args.corpus:
        for option in ("tokenizer", "val", "val_fraction"):
            if getattr(args, option) is not None:
                raise DataError(
                    f"--corpus docstrings has its own split and tokenizer: drop --{option.replace('_', '-')}"
                )
        vocab_size = 1024 if args.vocab_size is None else args.vocab_size
        prepare.prepare_docstrings(args.out, vocab_size=vocab_size, workers=args.workers, say=say)
    else:
        if args.tokenizer is None and args.vocab_size is None:
            raise DataError("give --tokenizer FILE.model, or --vocab-size N to train one")
        prepare.prepare_files(
            args.out,
            args.inputs,
            val_inputs=args.val,
            val_fraction=prepare.VAL_FRACTION if args.val_fraction is None else args.val_fraction,
            text_key=args.text_key,
            split_on=None if args.split_on is None else _unescaped(args.split_on),
            in_order=args.in_order,
            tokenizer=args.tokenizer,
            vocab_size=args.vocab_size,
            shard_tokens=args.shard_tokens,
            workers=args.workers,
            say=say,
            warn=say.keep,
        )
    say.close()
    sys.stdout.write(inspect.as_text(inspect.inspect(str(args.out))))
    sys.stdout.write(f"ready in {time.monotonic() - started:.0f} s\n")
    name = args.out.absolute().name
    sys.stdout.write(
        f"what a sweep on it would be: {launch()} sweeps/quickstart.yaml "
        f"data.dir={shlex.quote(str(args.out))} data.val_tokens=null name={shlex.quote(name)} --plan\n"
    )
    return 0


def _unescaped(text: str) -> str:
    r"""As a shell cannot write them: \n, \r and \t."""
    for written, meant in ((r"\n", "\n"), (r"\r", "\r"), (r"\t", "\t")):
        text = text.replace(written, meant)
    return text


def _inspect(args: argparse.Namespace) -> int:
    found = inspect.inspect(args.data, tokenizer=args.tokenizer, val=args.val, verify=args.verify)
    sys.stdout.write(inspect.as_json(found) if args.json else inspect.as_text(found))
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from gepa_core.data import fetch  # the hub's client is slow to import

    if args.workers < 1:
        raise DataError(f"--workers {args.workers}: at least 1")
    out = args.out or Path("data/datasets") / f"fineweb10B_{args.variant}"
    say = Progress()
    try:
        fetch.fetch(
            out,
            variant=args.variant,
            train_shards=fetch.TRAIN_SHARDS if args.shards is None else args.shards,
            repo=args.repo or fetch.REPO,
            revision=args.revision,
            workers=args.workers,
            say=say,
        )
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; complete shards are kept, the same command goes on from there\n")
        os._exit(130)  # not to wait for the downloads under way: all that is on disk was put there atomically
    finally:
        say.close()
    sys.stdout.write(inspect.as_text(inspect.inspect(str(out))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
