"""Documents as passages: text and Markdown files of a folder, or a JSONL file with a text per line."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tunegate.core.console import say
from tunegate.core.errors import UserError
from tunegate.core.profile import answer_text
from tunegate.core.rows import Row, json_kind, read_jsonl
from tunegate.serve.prompting.index import Passage
from tunegate.serve.prompting.prompting import question

SUFFIXES = (".txt", ".md", ".markdown", ".rst")
TEXT_KEYS = ("text", "content", "body")


def read_documents(path: Path) -> list[tuple[str, str]]:
    """(name, text) of each document. Raises UserError with file and line for what is not text, and when there is none."""
    if not path.exists():
        raise UserError(
            "no such file or folder", where=str(path), hint="--docs takes a folder of text files or a JSONL"
        )
    documents = _folder(path) if path.is_dir() else _jsonl(path)
    if not any(text.strip() for _, text in documents):
        raise UserError(
            "there is no document with text", where=str(path), hint=f"files read in a folder: {', '.join(SUFFIXES)}"
        )
    return documents


def split_documents(documents: Sequence[tuple[str, str]], *, tokens: int, count: Callable[[str], int]) -> list[Passage]:
    """Passages of at most `tokens` tokens, cut at paragraphs, sentences and words in that order (semchunk).

    Passages of the same words are kept once.
    """
    from semchunk.semchunk import chunk

    passages: list[Passage] = []
    seen: set[str] = set()
    for name, text in documents:
        for number, piece in enumerate(map(str, chunk(text, tokens, count)), 1):
            if piece not in seen:
                seen.add(piece)
                passages.append(Passage(id=f"{name}#{number}", text=piece, source=name))
    say(f"documents: {len(documents)}, passages of at most {tokens} tokens: {len(passages)}")
    return passages


def solved_examples(rows: Sequence[Row]) -> list[Passage]:
    """Training rows as passages, for retrieval without documents: the question and its expected answer."""
    return [
        Passage(id=row.id, text=f"Question: {question(row.prompt)}\nAnswer: {answer_text(row)}", source="training rows")
        for row in rows
    ]


def _folder(folder: Path) -> list[tuple[str, str]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    other = [p for p in files if p.suffix.lower() not in SUFFIXES]
    documents = [(str(p.relative_to(folder)), _text(p)) for p in files if p not in other]
    if other:
        names = ", ".join(p.name for p in other[:3])
        say(f"documents: {len(other)} files are not text and are left out ({names}{', ...' if len(other) > 3 else ''})")
    return documents


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text at byte {error.start}", where=str(path), hint="save it as UTF-8") from None
    if "\0" in text:
        raise UserError("not a text file: it holds NUL bytes", where=str(path), hint="convert it to text first")
    return text


def _jsonl(path: Path) -> list[tuple[str, str]]:
    if path.suffix.lower() in SUFFIXES:
        return [(path.name, _text(path))]
    documents: list[tuple[str, str]] = []
    for number, value in read_jsonl(path):
        where = f"{path}:{number}"
        if not isinstance(value, dict):
            raise UserError(f"expected an object, found {json_kind(value)}", where=where)
        key = next((k for k in TEXT_KEYS if k in value), None)
        if key is None or not isinstance(value[key], str):
            raise UserError(f'a document needs "text", found {", ".join(map(repr, list(value)[:5]))}', where=where)
        title = f"{value['title']}\n" if isinstance(value.get("title"), str) else ""
        documents.append((str(value.get("id") or value.get("title") or number), title + value[key]))
    names = [name for name, _ in documents]
    if len(set(names)) < len(names):
        documents = [(f"{name} (line {i})", text) for i, (name, text) in enumerate(documents, 1)]
    return documents
