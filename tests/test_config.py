from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from dylora_moe import config, parsing
from dylora_moe.errors import ConfigError


def settings_classes() -> list[type[BaseModel]]:
    return [
        found
        for found in vars(config).values()
        if isinstance(found, type) and issubclass(found, config.Settings)
    ]


def test_every_class_is_frozen_and_refuses_unknown_keys() -> None:
    found = settings_classes()
    assert len(found) >= 9
    for model in found:
        assert model.model_config.get("frozen")
        assert model.model_config.get("extra") == "forbid"


def test_the_defaults_are_valid_and_cannot_be_changed() -> None:
    settings = config.learn_settings()
    assert settings == config.LearnSettings()
    with pytest.raises(ValidationError):
        settings.seed = 3  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("expert.rnk=8", "unknown key 'expert.rnk'; did you mean 'rank'?"),
        ("novelty.treshold=0.8", "unknown key 'novelty.treshold'; did you mean 'threshold'?"),
        ("consolidation.epoch=1", "unknown key 'consolidation.epoch'; did you mean 'epochs'?"),
        ("seeding.lerning_rate=1", "did you mean 'learning_rate'?"),
        (
            "xyzzy=1",
            "unknown key 'xyzzy'; known: consolidation, distillation_temperature, drop_long,",
        ),
        ("expert.rank=0", "expert.rank: input should be greater than or equal to 1"),
        ("expert.rank=many", "expert.rank: input should be a valid integer"),
        ("expert.rank", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed.inner=3", "seed: input should be a valid integer"),
        ("seed=[1", "not valid YAML"),
        ("seed=-1", "seed: input should be greater than or equal to 0"),
        ("seed=4294967296", "seed: input should be less than 4294967296"),
        ("seeding.collaboration=[0.5, 1.5]", "seeding.collaboration.1: input should be less than"),
        ("more_data.collaboration=[-0.1, 0]", "more_data.collaboration.0: input should be greater"),
        ("novelty.detector=vibes", "novelty.detector"),
    ],
)
def test_a_bad_setting_is_one_line_that_says_where(setting: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.learn_settings([setting])
    message = str(caught.value)
    assert told in message
    assert "\n" not in message


def test_settings_override_one_another_in_order_and_keep_their_neighbours() -> None:
    found = config.learn_settings(
        ["expert.rank=4", "expert.rank=16", "seeding=null", "report_to=[tensorboard]"],
        base={"expert": {"alpha": 4.0}, "seed": 2},
    )
    assert (found.expert.rank, found.expert.alpha, found.seed) == (16, 4.0, 2)
    assert found.seeding is None
    assert found.report_to == ("tensorboard",)


def test_one_number_of_a_phase_keeps_the_phase_s_other_defaults() -> None:
    found = config.learn_settings(["consolidation.epochs=2", "seeding.batch_size=4"])
    assert found.consolidation == config.LearnSettings().consolidation.model_copy(
        update={"epochs": 2.0}
    )
    changed = config.learn_settings(["more_data.epochs=2"]).more_data
    assert changed.learning_rate == config.LearnSettings().more_data.learning_rate
    usual = config.LearnSettings().seeding
    assert found.seeding is not None
    assert usual is not None
    assert found.seeding.learning_rate == usual.learning_rate


def test_override_leaves_what_it_was_given() -> None:
    given = {"expert": {"rank": 8}}
    parsing.override(given, ["expert.rank=4"])
    assert given == {"expert": {"rank": 8}}


def stream(folder: Path, body: str) -> Path:
    file = folder / "stream.yaml"
    file.write_text(body, encoding="utf-8")
    return file


def test_paths_of_a_stream_are_relative_to_its_file(tmp_path: Path) -> None:
    file = stream(
        tmp_path, f"arrivals:\n  - file: a.jsonl\n    validation: v.jsonl\n  - file: {tmp_path}/b\n"
    )
    first, second = config.read_stream(file).arrivals
    assert (first.file, first.validation) == (tmp_path / "a.jsonl", tmp_path / "v.jsonl")
    assert (second.file, second.validation) == (tmp_path / "b", None)


def test_a_stream_s_settings_lie_under_those_of_the_command_line(tmp_path: Path) -> None:
    file = stream(tmp_path, "arrivals:\n  - file: a\nlearn:\n  seed: 1\n  expert: {rank: 4}\n")
    found = config.read_stream(file, ["expert.alpha=2", "seed=3"]).learn
    assert (found.seed, found.expert.rank, found.expert.alpha) == (3, 4, 2.0)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("arrivals: []", "arrivals"),
        ("arrivals:\n  - fil: a", "did you mean 'file'?"),
        ("arivals:\n  - file: a", "did you mean 'arrivals'?"),
        ("arrivals:\n  - file: a\nlearn:\n  exprt: {}", "did you mean 'expert'?"),
        ("arrivals:\n  - file: a\nlearn: 3", "learn: expected keys, found int"),
        ("- a\n- b", "found list"),
        ("", "found NoneType"),
        ("a: [", "not valid YAML"),
        ("arrivals: 3", "arrivals"),
    ],
)
def test_a_bad_stream_is_one_line_that_names_the_file(body: str, told: str, tmp_path: Path) -> None:
    file = stream(tmp_path, body)
    with pytest.raises(ConfigError) as caught:
        config.read_stream(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert told in message
    assert "\n" not in message


def test_invalid_yaml_names_its_line(tmp_path: Path) -> None:
    file = stream(tmp_path, "arrivals:\n  - file: a\n  - file: b: c\n")
    with pytest.raises(ConfigError) as caught:
        config.read_stream(file)
    assert str(caught.value).startswith(f"{file}:3: not valid YAML (mapping values")


def test_a_stream_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such stream file"):
        config.read_stream(tmp_path / "missing.yaml")
    file = tmp_path / "stream.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.read_stream(file)
