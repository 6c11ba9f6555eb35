"""Settings are what the file and the options say, or one sentence says why not."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ferflow.config import Settings, load_settings
from ferflow.errors import ConfigError

DEFAULTS = Path(__file__).parents[1] / "configs" / "default.toml"


def test_the_file_of_defaults_says_every_setting_with_its_explanation() -> None:
    paragraphs = [
        f"# {field.description}\n{name} = {json.dumps(field.default)}\n"
        for name, field in Settings.model_fields.items()
    ]
    head = "# Every setting of `ferflow analyze` at its default. Copy it, change it, give it as --config.\n"
    assert DEFAULTS.read_text(encoding="utf-8") == "\n".join([head, *paragraphs])


def test_the_file_of_defaults_changes_nothing() -> None:
    assert load_settings(DEFAULTS) == load_settings(None) == Settings()


def test_an_option_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("max_fps = 5\nannotate = false\n", encoding="utf-8")
    settings = load_settings(path, max_fps=2.0, smoothing_seconds=None)
    assert (settings.max_fps, settings.annotate) == (2.0, False)
    assert settings.smoothing_seconds == Settings().smoothing_seconds


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("max_fp = 5", "there is no setting max_fp; did you mean max_fps?"),
        ("zzz = 5", "there is no setting zzz; there are model, "),
        ("max_fps = -1", "max_fps = -1 has no meaning: input should be greater than or equal to 0."),
        ("annotate = 'perhaps'", "annotate = 'perhaps' has no meaning"),
        ("max_fps = ", "this is not a TOML file"),
        ("\0", "this is not a TOML file"),
        (b"\xff\xfe", "this is not a TOML file"),
    ],
)
def test_a_file_without_meaning_is_refused_in_one_sentence(
    tmp_path: Path, content: str | bytes, complaint: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml: the settings file cannot be read"):
        load_settings(tmp_path / "mine.toml")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().max_fps = 5  # type: ignore[misc]


def test_what_the_result_does_not_depend_on_leaves_the_hash() -> None:
    # A model counts by its version, so naming the same one in another way makes nothing anew.
    assert Settings(model="default").settings_hash == Settings(model="elsewhere").settings_hash
    assert Settings().settings_hash != Settings(max_fps=5).settings_hash


@given(
    st.builds(
        Settings,
        max_fps=st.floats(0, 1000),
        annotate=st.booleans(),
        annotated_short_side_px=st.integers(0, 10_000),
        smoothing_seconds=st.floats(0, 60),
    )
)
def test_settings_survive_a_file(settings: Settings) -> None:
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.model_dump().items())
    assert Settings.model_validate(tomllib.loads(text)) == settings
