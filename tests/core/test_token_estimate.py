"""One estimate of tokens for all who have no tokenizer."""

from tunegate.advisor.data_profile import summarise
from tunegate.core import token_estimate
from tunegate.core.profile import DatasetProfile
from tunegate.core.rows import Row
from tunegate.train.data.tokens import estimate, sizes

ROWS = [
    Row(id=str(i), messages=[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}])
    for i, text in enumerate(["a" * 360, "东京" * 75])
]


def test_a_token_is_fewer_characters_of_chinese_than_of_english() -> None:
    assert token_estimate.estimated(["a" * 36, "东" * 15, "", "a"]) == [10, 10, 0, 1]


def test_the_advisor_and_the_data_commands_estimate_the_same_lengths() -> None:
    advised = summarise(ROWS, None, "estimate")
    profiled = DatasetProfile.from_rows(ROWS)
    measured = list(sizes(ROWS, estimate()))
    assert [s.prompt for s in measured] == [105, 105]  # 100 of text and 5 of the template
    assert profiled.input_tokens.mean == 100
    assert advised.longest_tokens == 3 / 3.6 + 100 + 2 * 5
    assert max(s.total for s in measured) - advised.longest_tokens < 1
