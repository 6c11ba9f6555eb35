"""The README says what is so."""

import re
import tomllib
from pathlib import Path

import pytest

from ferflow.rows import describe_tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_columns_are_those_of_the_tables():
    assert describe_tables().strip() in README, "put what `ferflow tables` prints into README.md"


def test_its_make_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test", "analyze"} <= named <= targets


def test_its_options_exist(capsys):
    from flows.cli import COMMANDS, main

    offered = set()
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        offered |= set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"(docker|python -m|prefect|uv sync) .*", "", README)))
    assert {"--force", "--watch"} <= named <= offered


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_its_version_of_mediapipe_is_the_one_that_is_installed():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (mediapipe,) = [name for name in dependencies if name.startswith("mediapipe")]
    assert mediapipe.split("==")[1] in README
