"""The packaged encoder is the verdict on candidates, and on candidates only; the lexical rule stands in for it, and says so."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunegate.core import embedding
from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.core.rows import parse_row
from tunegate.train.data import words
from tunegate.train.data.cli import app
from tunegate.train.data.dedup import DedupConfig, deduplicate
from tunegate.train.data.judge import judge
from tunegate.train.data.near import letter_apart, similarity

LONG = "please book a table at the italian restaurant near the station for two people on friday evening"


def rows(*texts: str, answers: Sequence[str] = ()) -> list[Any]:
    return [
        parse_row(
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}], "id": f"r{at}"},
            "f.jsonl",
            at,
        )
        for at, (text, answer) in enumerate(zip(texts, answers or ["a"] * len(texts), strict=True))
    ]


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the encoder was asked about."""
    asked: list[str] = []
    real = embedding.Embedder.embed

    def embed(self: embedding.Embedder, texts: Sequence[str]) -> Any:
        asked.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(embedding.Embedder, "embed", embed)
    return asked


def test_only_candidates_are_embedded_and_the_cosine_decides(embedded: list[str]) -> None:
    near, far = LONG.replace("friday evening", "friday afternoon"), "where is my new bank card, it has not come"
    found = deduplicate(rows(LONG, near, far), DedupConfig())
    assert set(embedded) == {LONG, near}
    (gone,) = found.rejected
    vectors = embedding.load().embed([LONG, near])
    assert gone.kept == "r0"
    assert gone.score == pytest.approx(float(vectors[0] @ vectors[1]), abs=5e-3)  # bfloat16 against float32
    assert gone.rule == "cosine of builtin:minilm >= 0.95; same numbers and symbols; same answer"
    assert found.judged is not None
    assert found.judged.named == (
        "cosine of builtin:minilm >= 0.95, or one letter apart and overlap of character 4-grams >= 0.9"
    )
    assert [point["threshold"] for point in found.curve] == list(found.judged.curve)


LETTERS = [LONG + "s", LONG.replace("italian", "itallian"), LONG.replace("station", "statiun"), LONG[:-1]]


@pytest.mark.parametrize("other", LETTERS)
def test_one_letter_apart_is_near_and_the_encoder_is_not_asked(other: str, embedded: list[str]) -> None:
    found = deduplicate(rows(LONG, other, "where is my new bank card"), DedupConfig())
    (gone,) = found.rejected
    assert (gone.kept, gone.score) == ("r0", round(similarity(LONG, other), 4))
    assert gone.rule == (
        "one letter apart and overlap of character 4-grams >= 0.9; same numbers and symbols; same answer"
    )
    assert embedded == []
    assert {point["rows"] for point in found.curve} == {1}  # at every threshold
    assert found.borderline == []
    (contrast,) = deduplicate(rows(LONG, other, answers=["a", "b"]), DedupConfig()).contrast_pairs
    assert (contrast.b.id, contrast.spelling, embedded) == ("r1", True, [])


@pytest.mark.parametrize(
    "other",
    [
        LONG.replace("for two", "for ten"),
        LONG + "es",
        LONG.replace("near", "not near"),
        LONG.replace("people", "poeple"),
    ],
)
def test_two_letters_apart_are_for_the_encoder(other: str, embedded: list[str]) -> None:
    deduplicate(rows(LONG, other), DedupConfig())
    assert set(embedded) == {LONG, other}


def test_a_stricter_threshold_is_the_encoders_alone(embedded: list[str]) -> None:
    deduplicate(rows(LONG, LONG + "s"), DedupConfig(near_threshold=0.96))
    assert set(embedded) == {LONG, LONG + "s"}
    assert judge("builtin:minilm", 0.96).named == "cosine of builtin:minilm >= 0.96"


def test_a_row_goes_by_its_spelling_only_for_one_that_stays(embedded: list[str]) -> None:
    """b is one letter from c, and itself near a by the encoder: c may not go for b unless b is kept."""
    a, b = LONG, LONG.replace("friday evening", "friday afternoon")
    c = b + "s"
    found = deduplicate(rows(a, b, c), DedupConfig())
    assert set(embedded) == {a, b, c}
    kept = {row.id for row in found.kept}
    assert {gone.kept for gone in found.rejected} <= kept
    assert [(gone.line, gone.kept) for gone in found.rejected] == [(1, "r0"), (2, "r0")]
    apart = deduplicate(rows(a, b, c, answers=["x", "a", "a"]), DedupConfig())
    assert [(gone.line, gone.kept) for gone in apart.rejected] == [(2, "r1")]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("cat", "cat", True), ("cat", "cut", True), ("cat", "cats", True), ("cats", "cat", True), ("cat", "at", True),
     ("", "a", True), ("", "", True), ("cat", "act", False), ("cat", "catty", False), ("cat", "dog", False),
     ("ab", "", False), ("abc", "acb", False)],
)  # fmt: skip
def test_letter_apart(a: str, b: str, expected: bool) -> None:
    assert letter_apart(a, b) is letter_apart(b, a) is expected


def test_word_vectors_are_those_of_the_model() -> None:
    """Read from its files without loading it."""
    encoder = embedding.load()
    ids, vectors = embedding.word_vectors()
    assert np.array_equal(vectors, encoder.model.get_input_embeddings().weight.detach().numpy())
    texts = [LONG, "", "a\u0301 naïve Ärger 漢字 emoji 😀 don't", "word " * 300]
    expected = encoder.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=256)["input_ids"]
    assert ids(texts) == expected


def test_words_in_bfloat16_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [LONG, "where is my new bank card", "has the parcel come", LONG + " please", "where is my bank card now"]
    plain = words.neighbours(texts, embedding.BUILTIN)
    monkeypatch.setattr(words, "PLAIN_MOST", 0)
    monkeypatch.setattr(words, "bf16_flags", lambda: ["amx_bf16"])
    assert words.neighbours(texts, embedding.BUILTIN) == plain != [[]] * 5


def test_a_change_of_meaning_is_kept_though_the_letters_are_near() -> None:
    """Four letters of 96 apart: the lexical rule takes one for the other, the encoder does not."""
    other = LONG.replace("restaurant near", "restaurant not near")
    cosine = judge().scores([(LONG, other, similarity(LONG, other))])[0]
    threshold = 0.95 if cosine < 0.95 else min(1.0, cosine + 0.005)
    assert similarity(LONG, other) >= 0.9
    assert deduplicate(rows(LONG, other), DedupConfig(near_threshold=threshold)).rejected == []
    assert len(deduplicate(rows(LONG, other), DedupConfig(near_model="lexical")).rejected) == 1


def test_candidates_by_their_words(embedded: list[str]) -> None:
    """Letters alone do not bring these together; the verdict is the encoder's all the same."""
    a, b = "where do i find my card pin", "where can i locate my card pin"
    rest = ["my transfer to france was declined", "how old must one be to open an account", "the app asks for a photo",
            "top up by cheque", "is there a fee for cash", "my phone was stolen last night"]  # fmt: skip
    assert similarity(a, b) < 0.5
    (gone,) = deduplicate(rows(a, *rest, b), DedupConfig()).rejected
    assert (gone.line, gone.kept) == (7, "r0")
    assert set(embedded) == {a, b}
    assert deduplicate(rows(a, *rest, b), DedupConfig(near_model="lexical")).rejected == []


def test_words_are_compared_with_every_earlier_row(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        LONG,
        "where is my new bank card",
        "has the parcel come",
        LONG + " please",
        LONG,
        "where is my bank card now",
    ]
    expected = [[], [], [], [0], [0, 3], [1]]
    assert [sorted(found) for found in words.neighbours(texts, embedding.BUILTIN)] == expected
    monkeypatch.setattr(words, "ROWS", 2)
    monkeypatch.setattr(words, "COLUMNS", 1)
    assert [sorted(found) for found in words.neighbours(texts, embedding.BUILTIN)] == expected
    monkeypatch.setattr(words, "ROWS_MOST", 5)
    assert words.neighbours(texts, embedding.BUILTIN) == [[]] * 6


def test_another_answer_is_a_contrast_pair() -> None:
    found = deduplicate(rows(LONG, LONG + "s", answers=["a", "b"]), DedupConfig())
    assert (len(found.kept), len(found.contrast_pairs), found.rejected) == (2, 1, [])


@pytest.mark.parametrize(("a", "b"), [("2", "3"), ("over > 30", "over < 30"), ("in $", "in \u20ac"), ("c++", "c")])
def test_numbers_and_symbols_are_never_near(a: str, b: str) -> None:
    """`> 30` and `< 30` have a cosine of .995."""
    assert deduplicate(rows(f"{LONG} {a}", f"{LONG} {b}"), DedupConfig()).rejected == []


def test_the_end_of_a_text_counts_where_the_encoder_does_not_read_it() -> None:
    """Beyond 256 tokens two texts have one vector, whatever comes there."""
    start = " ".join(f"{LONG} and word{chr(97 + i)}" for i in range(20))
    a, b = f"{start} {LONG} and then go home", start + " the weather will be fine all over the country " * 4
    same = " and bring the bill"
    scores = judge().scores([(a, b, similarity(a, b)), (a, a + same, similarity(a, a + same))])
    vectors = embedding.load().embed([a, b])
    assert float(vectors[0] @ vectors[1]) > 0.999
    assert scores == [round(similarity(a, b), 4), round(similarity(a, a + same), 4)]


def test_a_verdict_does_not_depend_on_the_other_rows() -> None:
    texts = [LONG, LONG + "s", LONG.replace("two", "four"), LONG.replace("friday", "monday")]
    pairs = [(LONG, text, similarity(LONG, text)) for text in texts[1:]]
    together = judge().scores(pairs)
    alone = [judge().scores([pair])[0] for pair in pairs]
    assert together == pytest.approx(alone, abs=5e-3)


def test_without_the_package_the_letters_decide_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package_here")
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows(LONG, LONG + "s")))
    assert run(app, prog="ft data", argv=["dedup", str(source), "--json"]) == 0
    out, said = capsys.readouterr()
    assert "is not installed: near duplicates are judged by their letters" in said
    assert json.loads(out)["rules"]["near"].startswith("overlap of character 4-grams (builtin:minilm is not installed)")
    assert json.loads(out)["near"] == 1


def test_an_encoder_of_ones_own(tmp_path: Path) -> None:
    """A folder works as a hub id does; one that is no encoder is refused by name."""
    folder = embedding._builtin()
    (gone,) = deduplicate(
        rows(LONG, LONG.replace("evening", "afternoon")), DedupConfig(near_model=str(folder))
    ).rejected
    assert str(folder) in (gone.rule or "")
    with pytest.raises(UserError) as caught:
        judge(str(tmp_path))
    assert caught.value.where == str(tmp_path)


def test_quick_vectors_are_those_of_the_model() -> None:
    encoder = embedding.load()
    slow, quick = (found.embed([LONG, "hello"]) for found in (encoder, embedding.load(quick=True)))
    assert np.all((slow * quick).sum(1) >= 0.999)
    assert encoder.reads_whole(["hello", "word " * 300]) == [True, False]
