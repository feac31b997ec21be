import os
from pathlib import Path

import botocore.session
import pytest

from common.environment import load_settings
from common.errors import SettingsError
from common.sections import PRESETS
from support.settings_page import make_table

SETTINGS_PAGE = Path(__file__).parents[1] / "docs/settings.md"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("TEACHER__MODLE", "DISTILL_TEACHER__MODEL"),
        ("TRAIN_EPOCHS", "DISTILL_TRAIN__EPOCHS"),
        ("TRAIN_LIMIT", "DISTILL_DATA__TRAIN_LIMIT"),
    ],
)
def test_an_unknown_variable_names_the_nearest(settings, name, nearest):
    with pytest.raises(SettingsError, match=rf"DISTILL_{name}\b.*{nearest}$"):
        settings(**{name: "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATA__TRAIN_LIMIT", "many"),
        ("DATA__TRAIN_LIMIT", "-1"),
        ("TEACHER__TEMPERATURE", "2.5"),
        ("TEACHER__BASE_URL", "localhost:8000"),
        ("TEACHER__BASE_URL", "http://a b/v1"),
        ("TEACHER__ENDPOINT", "chats"),
        ("LABEL__MAX_FAILURE_RATE", "1.1"),
        ("TRAIN__PRESET", "best"),
        ("RUN", "../up"),
        ("RUN", "two\nlines"),
    ],
)
def test_a_wrong_value_is_told_in_one_line_without_the_key(settings, name, value):
    with pytest.raises(SettingsError) as caught:
        settings(TEACHER__API_KEY="sk-secret", **{name: value})
    message = str(caught.value)
    assert f"DISTILL_{name}={value!r}" in message
    assert "\n" not in message
    assert "sk-secret" not in message


def test_all_wrong_values_are_told_at_once(settings):
    with pytest.raises(SettingsError, match=r"TRAIN__EPOCHS=.*TRAIN__SEED="):
        settings(TRAIN__EPOCHS="-1", TRAIN__SEED="x")


def test_the_environment_wins_over_dotenv(settings):
    Path(".env").write_text("DISTILL_RUN=dotenv\nDISTILL_TEACHER__MODEL=dotenv\n")
    loaded = settings(RUN="environment")
    assert (loaded.run, loaded.teacher.model) == ("environment", "dotenv")


def test_dotenv_is_checked_like_the_environment(settings):
    Path(".env").write_text("DISTILL_RUNN=x\n")
    with pytest.raises(SettingsError, match="DISTILL_RUNN"):
        settings()


def test_secret_files_are_read_and_the_environment_wins(settings, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/distill_teacher__api_key").write_text("from file\n")
    (tmp_path / "secrets/DISTILL_TEACHER__MODEL").write_text("from file\n")
    (tmp_path / "secrets/unrelated").write_text("ignored")
    loaded = settings(SECRETS_DIR=str(tmp_path / "secrets"), TEACHER__MODEL="from environment")
    assert loaded.teacher.api_key.get_secret_value() == "from file"
    assert loaded.teacher.model == "from environment"


def test_an_empty_variable_does_not_hide_a_secret_file(settings, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/DISTILL_TEACHER__API_KEY").write_text("from file")
    loaded = settings(SECRETS_DIR=str(tmp_path / "secrets"), TEACHER__API_KEY="")
    assert loaded.teacher.api_key.get_secret_value() == "from file"


def test_a_missing_secrets_folder_is_an_error(settings):
    with pytest.raises(SettingsError, match="DISTILL_SECRETS_DIR='nowhere'"):
        settings(SECRETS_DIR="nowhere")


def test_openai_variables_are_taken_where_ours_are_not_set(settings, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://openai.test/v1")
    teacher = settings().teacher
    assert teacher.base_url == "http://openai.test/v1"
    assert teacher.api_key.get_secret_value() == "sk-openai"
    ours = settings(TEACHER__BASE_URL="http://ours.test/v1", TEACHER__API_KEY="sk-ours").teacher
    assert ours.base_url == "http://ours.test/v1"
    assert ours.api_key.get_secret_value() == "sk-ours"


@pytest.mark.parametrize("name", ["DISTILL_TEACHER__BASE_URL", "OPENAI_BASE_URL"])
def test_a_base_url_is_checked_wherever_it_comes_from(monkeypatch, name):
    monkeypatch.setenv(name, "http://teacher.test/v1/")
    assert load_settings().teacher.base_url == "http://teacher.test/v1"
    monkeypatch.setenv(name, "teacher.test")
    with pytest.raises(SettingsError, match=r"teacher\.test"):
        load_settings()


def test_empty_variables_are_ignored(settings, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    defaults = settings()
    assert settings(TRAIN__EPOCHS="", TEACHER__BASE_URL="", RUN="", TASK="") == defaults


def test_a_preset_sets_the_fields_below_it(settings):
    train = settings(TRAIN__PRESET="reference").train
    assert train.model_dump(include=set(PRESETS["reference"])) == PRESETS["reference"]


def test_a_field_of_the_environment_wins_over_the_preset(settings):
    train = settings(TRAIN__PRESET="reference", TRAIN__LORA_RANK="4").train
    assert (train.lora_rank, train.lora_alpha) == (4, PRESETS["reference"]["lora_alpha"])


def test_the_builtin_student_takes_its_preset_unless_told_otherwise(settings):
    default_rate = settings().train.learning_rate
    train = settings(STUDENT__MODEL="builtin", TRAIN__EPOCHS="1").train
    assert (train.preset, train.epochs) == ("builtin", 1)
    assert train.learning_rate == PRESETS["builtin"]["learning_rate"] != default_rate
    assert settings(TRAIN__PRESET="default").train.learning_rate == default_rate


def test_lists_are_separated_by_commas(settings):
    train = settings(TRAIN__TARGET_MODULES="q_proj, v_proj,").train
    assert train.target_modules == ["q_proj", "v_proj"]


def test_secrets_are_not_shown(settings):
    loaded = settings(TEACHER__API_KEY="sk-secret")
    shown = [repr(loaded), str(loaded), loaded.model_dump_json(), str(loaded.model_dump())]
    assert "sk-secret" not in "".join(shown)


def test_the_settings_page_has_the_table_of_settings():
    page = SETTINGS_PAGE.read_text("utf-8")
    table = page.split("<!-- settings -->")[1].split("<!-- /settings -->")[0]
    assert table == f"\n{make_table()}\n"


def test_white_space_around_values_is_no_part_of_them(settings):
    loaded = settings(
        RUN=" mine ", TEACHER__API_KEY="key\n", STORAGE__ROOT=" runs ", DATA__TEXT_PREFIX="fix: "
    )
    assert (loaded.run, loaded.storage.root) == ("mine", "runs")
    assert loaded.teacher.api_key.get_secret_value() == "key"
    assert loaded.data.text_prefix == "fix: "


@pytest.mark.parametrize("url", ["https://user:hunter2@host/v1", "https://host/v1?key=hunter2@x"])
def test_a_url_with_a_secret_is_refused_without_showing_it(settings, url):
    with pytest.raises(SettingsError, match="DISTILL_TEACHER__API_KEY") as raised:
        settings(TEACHER__BASE_URL=url)
    assert "hunter2" not in str(raised.value)


def test_an_unknown_variable_in_lower_case_is_unknown_too(settings, monkeypatch):
    monkeypatch.setenv("distill_rnu", "x")
    with pytest.raises(SettingsError, match="DISTILL_RUN"):
        settings()


def test_what_other_software_reads_may_stand_in_secret_files(settings, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/AWS_SESSION_TOKEN").write_text("token\n")
    settings(SECRETS_DIR=str(tmp_path / "secrets"))
    assert os.environ["AWS_SESSION_TOKEN"] == "token"


@pytest.mark.parametrize("given", [{}, {"AWS_DEFAULT_REGION": "us-west-2"}])
def test_the_object_store_is_in_awss_region(settings, monkeypatch, given):
    for name, value in {"AWS_REGION": "eu-west-3", **given}.items():
        monkeypatch.setenv(name, value)
    settings()
    region = botocore.session.get_session().get_config_variable("region")
    assert region == given.get("AWS_DEFAULT_REGION", "eu-west-3")


def test_an_unreadable_env_file_is_told(settings, tmp_path):
    (tmp_path / ".env").write_bytes(b"DISTILL_RUN=caf\xe9\n")
    with pytest.raises(SettingsError, match=r"\.env"):
        settings()


def test_the_stand_in_has_its_own_model_name(settings):
    assert settings(TEACHER__BASE_URL="builtin", TEACHER__MODEL="big").teacher.model == "stand-in"
