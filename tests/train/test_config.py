"""How settings are found: presets, origins, misspelt keys, former names, types, files."""

import re

import pytest

from tunegate.core.errors import UserError
from tunegate.core.methods import ALL_LINEAR
from tunegate.train.advice import warnings
from tunegate.train.config import TrainConfig, from_file, resolve, to_yaml

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("preset", "rank", "alpha", "targets", "rate"),
    [
        ("conservative", 4, 8, ("q_proj", "v_proj"), 1e-4),
        ("recommended", 16, 32, LINEAR, 2e-4),
        ("aggressive", 64, 128, LINEAR, 3e-4),
    ],
)
def test_presets_are_exactly_these(preset, rank, alpha, targets, rate):
    config, settings, _ = resolve([("flag", {"preset": preset})])
    assert (config.rank, config.alpha, config.targets, config.learning_rate) == (rank, alpha, targets, rate)
    assert settings["rank"].origin == f"preset {preset}"
    assert settings["preset"].origin == "flag"


def test_each_setting_says_where_it_is_from():
    _, settings, notes = resolve([("a.yaml", {"rank": 8, "seed": 1}), ("flag", {"seed": 2})])
    origins = {key: setting.origin for key, setting in settings.items()}
    assert (origins["rank"], origins["seed"], origins["alpha"]) == ("a.yaml", "flag", "preset recommended")
    assert origins["max_length"] == "default"
    assert settings["seed"].value == 2
    assert notes == []


def test_a_file_names_the_preset_and_a_flag_overrides_one_part_of_it():
    config, _, _ = resolve([("a.yaml", {"preset": "aggressive"}), ("flag", {"rank": 2})])
    assert (config.rank, config.alpha, config.learning_rate) == (2, 128, 3e-4)


def test_full_tuning_has_its_own_learning_rate_unless_one_is_named():
    config, settings, _ = resolve([("flag", {"method": "full"})])
    assert (config.learning_rate, settings["learning_rate"].origin) == (2e-5, "default for full")
    assert resolve([("flag", {"method": "full", "learning_rate": 1e-5})])[0].learning_rate == 1e-5


@pytest.mark.parametrize(
    ("misspelt", "right"), [("learnign_rate", "learning_rate"), ("ranks", "rank"), ("max_step", "max_steps")]
)
def test_a_misspelt_key_is_refused_with_the_nearest_name(misspelt, right):
    with pytest.raises(UserError, match=f"unknown setting '{misspelt}'") as caught:
        resolve([("a.yaml", {misspelt: 1})])
    assert caught.value.where == "a.yaml"
    assert f'"{right}"' in caught.value.hint


@pytest.mark.parametrize(
    ("former", "value", "now"),
    [("max_seq_length", 512, "max_length"), ("lora_alpha", 8, "alpha"), ("r", 8, "rank"), ("epochs", 2, "num_train_epochs"),
     ("target_modules", ["q_proj"], "targets"), ("lora_dropout", 0.1, "dropout"), ("lr", 1e-4, "learning_rate")],
)  # fmt: skip
def test_former_names_are_mapped_and_said(former, value, now):
    config, _, notes = resolve([("old.yaml", {former: value})])
    expected = tuple(value) if isinstance(value, list) else value
    assert getattr(config, now) == expected
    assert notes == [f"old.yaml: {former} is called {now} here"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rank", "many", "rank must be a whole number, not 'many'"),
        ("rank", 1.5, "rank must be a whole number, not 1.5"),
        ("rank", True, "rank must be a whole number, not True"),
        ("rank", None, "rank must be a whole number, not None"),
        ("rank", 0, "rank must be above 0, not 0"),
        ("rank", float("inf"), "rank must be a whole number, not inf"),
        ("learning_rate", "fast", "learning_rate must be a number"),
        ("learning_rate", -1e-4, "learning_rate must be above 0"),
        ("learning_rate", float("nan"), "learning_rate must be above 0"),
        ("dropout", 1.5, "dropout must be between 0 and 1"),
        ("fast_cpu", "yes", "fast_cpu must be true or false"),
        ("targets", 7, "targets must be a list of names"),
        ("targets", [], "targets must be a list of names"),
        ("validation_share", -0.1, "validation_share must be between 0 and 1"),
    ],
)
def test_wrong_values_are_refused_with_their_origin(key, value, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        resolve([("a.yaml", {key: value})])
    assert caught.value.where == "a.yaml"


def test_numbers_that_yaml_gives_as_text_are_numbers():
    config, _, _ = resolve([("a.yaml", {"learning_rate": "5e-4", "max_steps": "120", "num_train_epochs": 2})])
    assert (config.learning_rate, config.max_steps, config.num_train_epochs) == (5e-4, 120, 2.0)
    assert resolve([("flag", {"targets": "q_proj, v_proj"})])[0].targets == ("q_proj", "v_proj")
    assert resolve([("flag", {"gradient_checkpointing": None})])[0].gradient_checkpointing is None


def test_unknown_choices():
    with pytest.raises(UserError, match="unknown method 'lorra'") as caught:
        resolve([("flag", {"method": "lorra"})])
    assert '"lora"' in caught.value.hint
    with pytest.raises(UserError, match="unknown preset 'agressive'") as caught:
        resolve([("flag", {"preset": "agressive"})])
    assert '"aggressive"' in caught.value.hint
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        resolve([("flag", {"device": "gpu"})])


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_a_yaml_error_has_file_and_line(tmp_path):
    path = write(tmp_path, "rank: 4\nalpha: [8\nseed: 1\n")
    with pytest.raises(UserError, match="not valid YAML") as caught:
        from_file(path)
    assert caught.value.where == f"{path}:3"
    path.write_bytes(b"rank: \xff\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 6"):
        from_file(path)


@pytest.mark.parametrize("text", ["", "- 1\n", "rank", "train: 4\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"must be a mapping|expected a mapping"):
        from_file(write(tmp_path, text))
    with pytest.raises(UserError, match="no such file"):
        from_file(tmp_path / "missing.yaml")


def test_a_recommendation_gives_its_train_part(tmp_path):
    path = write(tmp_path, "recommendation: {method: lora}\ntrain:\n  method: qlora\n  learning-rate: 1e-4\n")
    assert from_file(path) == {"method": "qlora", "learning_rate": 1e-4}
    assert resolve([("r", from_file(path))])[0].learning_rate == 1e-4


def test_the_resolved_config_reads_back_as_itself(tmp_path):
    config, _, _ = resolve([("flag", {"preset": "conservative", "seed": 7, "learning_rate": 1e-5})])
    assert resolve([("file", from_file(write(tmp_path, to_yaml(config))))])[0] == config
    assert TrainConfig().targets == ALL_LINEAR


def test_advice_on_a_learning_rate_of_the_other_method():
    assert "full-tuning rate" in warnings(TrainConfig(method="lora", learning_rate=2e-5))[0]
    assert "LoRA rate" in warnings(TrainConfig(method="full", learning_rate=2e-4))[0]
    assert warnings(TrainConfig(method="lora", learning_rate=2e-4)) == []


def test_a_setting_beside_those_of_train_is_not_passed_over(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("schema_version: 1\ntrain: {rank: 8}\nrank: 4\n")
    with pytest.raises(UserError, match="'rank' stands beside `train:`") as caught:
        from_file(path)
    assert caught.value.where == f"{path}:3"


def test_null_is_no_text():
    with pytest.raises(UserError, match="adapter must be text, not None"):
        resolve([("c.yaml", {"adapter": None})])
