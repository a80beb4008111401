"""The command that checks a task distribution."""

import pytest

from metarl.check import main


def leave(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    return leaving.value.code, *capsys.readouterr()


def test_a_sound_distribution_passes_without_a_word(capsys):
    assert leave(capsys, "metarl.envs:Navigation2D") == (0, "", "")
    assert leave(capsys, "tests.metarl.rl.test_task_checks:Sound") == (0, "", "")


def test_a_line_is_printed_per_defect(capsys):
    code, out, err = leave(capsys, "tests.metarl.rl.test_task_checks:NoDistribution")
    assert (code, len(out.splitlines()), err) == (1, 1, "")


@pytest.mark.parametrize("words", [["metarl.envs"], [], ["metarl.envs:a:b"], ["a:b", "c:d"]])
def test_bad_arguments_get_one_line(words, capsys):
    code, out, err = leave(capsys, *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: ")
    assert "MODULE:OBJECT" in err


@pytest.mark.parametrize("name", ["metarl.envs:Navigation3D", "no_such_module:Tasks"])
def test_what_cannot_be_imported_is_named_in_one_line(name, capsys):
    code, out, err = leave(capsys, name)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: {name} cannot be made")


def test_help_says_how_it_is_called(capsys):
    code, out, err = leave(capsys, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: python -m metarl.check")
