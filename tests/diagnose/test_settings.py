from pathlib import Path

import pytest

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Finding
from desat.diagnose.rules import all_thresholds
from desat.diagnose.rules.saturated_activation import SATURATED_SHARE
from desat.diagnose.settings import Settings, parse_settings, read_settings
from desat.diagnose.threshold import limited
from desat.errors import DesatError
from tests.records import deep_network, write_record


def finding(code: str, site: str | None) -> Finding:
    return Finding(code, "error", site, (), None, 0, 0, "", "")


def test_a_limit_holds_inside_of_its_context_alone() -> None:
    with limited({"saturated-share": 0.7}):
        assert SATURATED_SHARE.value == 0.7
    assert SATURATED_SHARE.value == SATURATED_SHARE.default


def test_a_diagnosis_goes_by_the_users_limits(tmp_path: Path) -> None:
    rows = deep_network(steps=range(0, 300, 10), saturated_high=0.5, loss=lambda step: 2.3)
    with write_record(tmp_path / "run", rows) as record:
        assert "saturated-activation" in {found.code for found in diagnose(record).findings}
        mild = diagnose(record, Settings({"saturated-share": 0.6}))
        assert "saturated-activation" not in {found.code for found in mild.findings}


def test_a_silenced_finding_is_not_told(tmp_path: Path) -> None:
    rows = deep_network(steps=range(0, 300, 10), saturated_high=0.5, loss=lambda step: 2.3)
    with write_record(tmp_path / "run", rows) as record:
        loud, quiet = diagnose(record), diagnose(record, Settings(silenced=("saturated-activation",)))
    assert "saturated-activation" in {found.code for found in loud.findings}
    assert [found for found in loud.findings if found.code != "saturated-activation"] == list(quiet.findings)


@pytest.mark.parametrize(
    ("pattern", "code", "site", "silent"),
    [
        ("dead-units", "dead-units", "net.3", True),
        ("dead-units", "loss-plateau", None, False),
        ("dead-units@net.3", "dead-units", "net.3", True),
        ("dead-units@net.3", "dead-units", "net.30", False),
        ("dead-units@net.*", "dead-units", "net.30", True),
        ("*@encoder.*", "vanishing-gradient", "encoder.0", True),
        ("loss-plateau@net", "loss-plateau", None, False),
    ],
)
def test_a_pattern_names_a_code_and_perhaps_a_site(pattern: str, code: str, site: str | None, silent: bool) -> None:
    assert Settings(silenced=(pattern,)).silences(finding(code, site)) is silent


def test_the_nearest_project_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.desat]\nsilence = ["dead-units@net.3"]\n[tool.desat.limits]\ndead-share = 0.75\n'
    )
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    found = read_settings(below, all_thresholds())
    assert found == Settings({"dead-share": 0.75}, ("dead-units@net.3",))
    (below / "pyproject.toml").write_text("[project]\n")
    assert read_settings(below, all_thresholds()) == Settings()


def test_the_command_line_goes_before_the_file() -> None:
    asked = parse_settings(["dead-share=0.9"], ["loss-plateau"], all_thresholds())
    joined = Settings({"dead-share": 0.75, "severe": 0.4}, ("dead-units",)).joined(asked)
    assert joined == Settings({"dead-share": 0.9, "severe": 0.4}, ("dead-units", "loss-plateau"))


@pytest.mark.parametrize("text", ["dead-share", "dead-share=many", "dead-shore=0.5"])
def test_a_wrong_limit_is_told(text: str) -> None:
    with pytest.raises(DesatError, match="limit"):
        parse_settings([text], [], all_thresholds())


@pytest.mark.parametrize(
    "text",
    [
        "[tool.desat]\nsilence = 'dead-units'\n",
        "[tool.desat]\nlimits = 3\n",
        "[tool.desat.limits]\ndead-share = 'much'\n",
        "[tool.desat.limits]\ndead-shore = 0.5\n",
        "[tool.desat]\nlimit = 3\n",
        "[tool.desat\n",
    ],
)
def test_a_wrong_project_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(DesatError, match=r"pyproject\.toml"):
        read_settings(tmp_path, all_thresholds())
