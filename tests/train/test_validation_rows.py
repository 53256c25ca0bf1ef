"""Rows set aside for the validation loss: whole groups, and no part of what the certificate says was learnt."""

from tunegate.core.model_source import resolve
from tunegate.train import sft
from tunegate.train.config import TrainConfig
from tunegate.train.examples import Example, split_validation


def made(sizes):
    return [
        Example(id=f"{group}-{n}", input_ids=[1], labels=[1], group=group)
        for group, size in sizes.items()
        for n in range(size)
    ]


def test_a_group_stays_on_one_side():
    """A row was judged by while its conversation's other rows were trained on."""
    rows = made({f"g{n}": 3 for n in range(100)})
    train, validation = split_validation(rows, 0.1, 0)
    assert len(validation) == 30
    assert not {e.group for e in train} & {e.group for e in validation}
    assert split_validation(rows[::-1], 0.1, 0)[1] == validation[::-1]


def test_groups_that_are_too_large_are_not_set_aside():
    train, validation = split_validation(made({"large": 500, **{f"g{n}": 2 for n in range(20)}}), 0.02, 0)
    assert len(validation) == 10
    assert "large" not in {e.group for e in validation}
    train, validation = split_validation(made({"a": 30, "b": 20, "c": 40}), 0.05, 0)
    assert {e.group for e in validation} == {"b"}, "the smallest, where none fits"
    train, validation = split_validation(made({"a": 500, "b": 600}), 0.05, 0)
    assert (len(train), len(validation)) == (1100, 0), "none of at most 64 rows"
    train, validation = split_validation(made({"a": 30}), 0.05, 0)
    assert (len(train), len(validation)) == (30, 0)


def test_rows_without_a_group_are_alone():
    rows = [Example(id=f"r{n}", input_ids=[1], labels=[1]) for n in range(100)]
    assert len(split_validation(rows, 0.1, 0)[1]) == 10


def test_the_certificate_leaves_out_what_is_set_aside(tiny_model, makers, tmp_path):
    """The card said of them that the loss fell on their answers."""
    rows = [{**row, "group": f"g{n // 2}"} for n, row in enumerate(makers.rows(20))]
    dataset = makers.dataset(tmp_path / "data", rows, [])
    config = TrainConfig(model=str(tiny_model), validation_share=0.2)
    ready = sft.prepare(dataset, resolve(str(tiny_model)), config)
    assert (len(ready.training), len(ready.validation), len(ready.kept)) == (16, 4, 20)
    assert not {e.group for e in ready.training} & {e.group for e in ready.validation}
    found = ready.certificate
    assert (found.rows, found.longest) == (16, max(len(e.input_ids) for e in ready.training))
    assert found.tokens == sum(len(e.input_ids) for e in ready.training)
    assert found.label_tokens == sum(label >= 0 for e in ready.training for label in e.labels)
