"""The command `optimc` itself: its names, options and exit codes; each command has a file of tests of its own."""

import importlib
import os
import re
import subprocess
import sys
import tomllib

import pytest
from places import ROOT

import optimc
from optimc.__main__ import COMMANDS, ELSEWHERE, Parser, main

COMMAND = [sys.executable, "-m", "optimc"]


def refused(argv, capsys):
    """The one line on standard error with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def parsers():
    """The parser of each command."""
    subparsers = Parser(prog="optimc").add_subparsers()
    for command in COMMANDS:
        command.add_command(subparsers)
    return subparsers.choices


def test_without_a_command_it_prints_help(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: optimc [-h]") and "compare" in printed and "exit codes: 0 " in printed


@pytest.mark.parametrize("argv, said", [
    (["--version"], f"optimc {optimc.__version__}"), (["compare", "--help"], "--optimizers NAME"),
    (["--help"], "compare")])
def test_version_and_help(argv, said):
    process = subprocess.run([*COMMAND, *argv], capture_output=True, text=True, check=True)
    assert said in process.stdout and process.stderr == ""


def test_the_console_script_is_the_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, function = project["scripts"]["optimc"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    for argv in (["--version"], ["compare", "--epochs", "0"]):
        script, as_module = (subprocess.run([*command, *argv], capture_output=True, text=True, check=False)
                             for command in ([sys.executable, "-c", code], COMMAND))
        assert (script.returncode, script.stdout, script.stderr) == (
            as_module.returncode, as_module.stdout, as_module.stderr)


def test_a_terminal_that_lacks_a_letter_shows_a_question_mark():
    code = """
import sys
from optimc.__main__ import script
sys.argv = ["optimc", "--version"]
try:
    script()
finally:
    print("\\xb5")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True,
                             env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert process.stdout.splitlines()[1] == b"?"


def test_an_unknown_command_is_refused_in_one_line(capsys):
    assert refused(["contrast"], capsys).startswith("optimc: error: argument COMMAND: invalid choice: 'contrast'")


@pytest.mark.parametrize("argv, said", [
    (["compare", "--lr", "0.1"], "error: there is no option --lr: did you mean --learning-rate? "),
    (["compare", "--lr=0.1"], "error: there is no option --lr: did you mean --learning-rate? "),
    (["compare", "--seed", "3"], "error: there is no option --seed: did you mean --seeds? "),
    (["compare", "--optimiser", "adam"], "error: there is no option --optimiser: did you mean --optimizers? "),
    (["compare", "--epoch", "3"], "error: there is no option --epoch: did you mean --epochs? "),
    (["compare", "--overwrite"], "error: there is no option --overwrite: did you mean --force? "),
    (["compare", "--colour", "red"], "error: there is no option --colour (--help"),
    (["compare", "data.csv"], "error: unexpected argument 'data.csv' (--help"),
    (["bench", "--optimizers", "adam"], "error: there is no option --optimizers: did you mean --optimizer? "),
    (["bench", "--lr", "0.1"], "error: there is no option --lr (--help"),
])
def test_an_option_that_is_not_there_is_refused_with_a_suggestion(argv, said, capsys):
    line = refused(argv, capsys)
    assert line.startswith(f"optimc {argv[0]}: {said}") and line.endswith(" (--help shows the options)\n")


def test_an_option_before_the_command_is_refused(capsys):
    assert refused(["--colour"], capsys) == "optimc: error: there is no option --colour (--help shows the options)\n"


@pytest.mark.parametrize("name", parsers())
def test_no_option_can_be_abbreviated(name, capsys):
    options = [option for action in parsers()[name]._actions for option in action.option_strings if len(option) > 4]
    assert len(options) > 5
    for option in options:
        assert f"there is no option {option[:-1]}" in refused([name, option[:-1], "1"], capsys)


def test_options_of_other_programs_lead_to_options_that_exist():
    known = {option for parser in parsers().values() for action in parser._actions
             for option in action.option_strings}
    assert set(ELSEWHERE.values()) <= known and not known & set(ELSEWHERE)


@pytest.mark.parametrize("name", parsers())
def test_help_has_examples_that_parse_and_exit_codes(name):
    parser = parsers()[name]
    text = parser.format_help()
    assert text.startswith(f"usage: optimc {name} ") and re.search(r"^exit codes: 0 done, 2 .*, 130 ", text, re.M)
    examples = re.findall(rf"^  optimc {name}(.*)\n      \w", text, re.M)
    assert len(examples) >= 3
    for example in examples:
        parser.parse_args(example.split())
    assert max(map(len, text.splitlines())) <= 118


def test_importing_the_command_imports_no_extra():
    code = ("import sys, optimc.__main__; "
            "print({'matplotlib', 'rich', 'sklearn'} & set(sys.modules))")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                             check=True)
    assert process.stdout == "set()\n"
