"""A prefect.yaml may be anybody's and hold anything: which of its deployments are ours, and no traceback."""

from pathlib import Path

import pytest

from flows.catalogue import find_catalogue, load_catalogue
from flows.cli import main as cli

OURS = "flows/distill.py:distill"
FOREIGN = """
name: etl
deployments:
- {name: null, entrypoint: null, parameters: {}, work_pool: {name: null}}
- {name: nightly, flow_name: nightly-etl}
- {name: hourly, entrypoint: "etl.py:hourly"}
- 3
- null
- text
- [a, list]
"""


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "home"))
    (tmp_path / "etl").mkdir()
    monkeypatch.chdir(tmp_path / "etl")
    return tmp_path / "etl" / "prefect.yaml"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_foreign_file_is_passed_over_and_it_is_said(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue.write_text(FOREIGN)
    packaged = Path(__file__).parents[2] / "prefect.yaml"
    assert cli.main(["ls"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"note: {catalogue} names no run of distill; using {packaged}\n"
    assert "\nllmr-chitchat\n" in captured.out
    assert f"These are in {packaged}." in captured.out
    assert cli.main(["run", "nightly"]) == 1
    assert lines(capsys)[1].startswith("error: there is no run called 'nightly'")


def test_a_foreign_file_that_is_named_is_refused(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue.write_text(FOREIGN)
    for command in (["ls"], ["run", "nightly"], ["plan", "llmr-chitchat"], ["up"]):
        assert cli.main([*command, "--prefect-file", str(catalogue)]) == 1
        first, second = lines(capsys)
        assert first.startswith(f"error: {catalogue} names no run of distill")
        assert second == "name another file with --prefect-file"


def test_other_flows_beside_ours_are_left_out(catalogue: Path) -> None:
    catalogue.write_text(FOREIGN + f"- {{name: mine, entrypoint: '{OURS}'}}\n")
    assert find_catalogue() == catalogue
    assert list(load_catalogue(catalogue)) == ["mine"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{entrypoint: ENTRY}", "deployment 1 has no name, which must be a text"),
        ("{entrypoint: ENTRY, name: null}", "deployment 1 has no name"),
        ("{entrypoint: ENTRY, name: 3}", "deployment 1 has no name"),
        ("{entrypoint: ENTRY, name: [a]}", "deployment 1 has no name"),
        ("{entrypoint: ENTRY, name: ' '}", "deployment 1 has no name"),
        ('{entrypoint: ENTRY, name: "a\\nb"}', "deployment 1 has a name that no file can bear: 'a\\nb'"),
        (f"{{entrypoint: ENTRY, name: {'é' * 101}}}", "deployment 1 has a name that no file can bear"),
        ("{entrypoint: ENTRY, name: a, description: [b]}", "deployment 1, 'a': description must be a text, got list"),
        ("{entrypoint: ENTRY, name: a, tags: b}", "deployment 1, 'a': tags must be a list, got str"),
        ("{entrypoint: ENTRY, name: a, parameters: 3}", "deployment 1, 'a': parameters must be settings, got int"),
        ("{entrypoint: ENTRY, name: a, parameters: {seed: 2024-01-01}}", "'a': its parameters are no plain settings"),
        ("{entrypoint: ENTRY, name: a, parameters: &p {seed: *p}}", "'a': its parameters are no plain settings"),
        ("{entrypoint: ENTRY, name: a, parameters: {? [1, 2] : 3}}", "is not valid YAML"),
        ("{entrypoint: ENTRY, name: a}\n- {entrypoint: ENTRY, name: a}", "has two runs called 'a'"),
        ("{entrypoint: ENTRY, name: a, parameters: {seed: 2024-13-45}}", "is not valid YAML: month must be in 1..12"),
        ("*nothing", "is not valid YAML: found undefined alias"),
        ("!!python/object:os.system {}", "is not valid YAML"),
        ("[" * 2000, "is not valid YAML"),
    ],
)
@pytest.mark.parametrize("command", [["ls"], ["run", "a"], ["plan", "a"]])
def test_a_run_that_is_described_badly_is_named(
    catalogue: Path, capsys: pytest.CaptureFixture[str], entry: str, said: str, command: list[str]
) -> None:
    catalogue.write_text(f"deployments:\n- {entry.replace('ENTRY', OURS)}\n")
    assert cli.main(command) == 1
    found = lines(capsys)
    assert found[0].startswith(f"error: {catalogue}")
    assert said in found[0]
    assert len(found) <= 2


@pytest.mark.parametrize("content", [b"", b"3", b"[1]", b"a: b", b"deployments: null", b"deployments: {a: b}"])
def test_a_file_without_deployments_is_passed_over(
    catalogue: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    catalogue.write_bytes(content)
    assert cli.main(["ls"]) == 0
    assert lines(capsys)[0].startswith(f"note: {catalogue} names no run of distill")


@pytest.mark.parametrize("content", [b"\xff\xfea\0", b"a: caf\xe9", b"a: \x00"])
def test_a_file_that_is_no_text_is_named(catalogue: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    catalogue.write_bytes(content)
    assert cli.main(["ls"]) == 1
    first, second = lines(capsys)
    assert first.startswith(f"error: {catalogue} is not valid YAML")
    assert second == "mend it, or name another file with --prefect-file"
