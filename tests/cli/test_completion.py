"""``van completion``: scripts that complete every verb, recipe, option and choice; bash is run for real."""

import shlex
import shutil
import subprocess

import pytest

from van.cli.commands import list_commands
from van.cli.verbs import VERBS
from van.recipes import ALIASES, RECIPES


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A folder with van.bash, van.zsh and van.fish."""
    from van.cli.commands import list_commands
    from van.cli.completion import list_names
    from van.cli.completion_scripts import write_bash, write_fish, write_zsh

    folder = tmp_path_factory.mktemp("completion")
    commands = list_commands()
    for shell, write in (("bash", write_bash), ("zsh", write_zsh), ("fish", write_fish)):
        (folder / f"van.{shell}").write_text(write(commands, list_names(commands)))
    return folder


@pytest.fixture
def complete(van, tmp_path):
    """Complete a command line in a real bash: the last argument is the word at the cursor."""
    script = tmp_path / "van.bash"
    script.write_text(van("completion", "bash").out)

    def run(*lines: str) -> list[list[str]]:
        program = [f"cd {shlex.quote(str(tmp_path))}; source van.bash; complete -p van >/dev/null || exit 3"]
        for line in lines:
            words = " ".join(shlex.quote(word) for word in ["van", *line.split(" ")])
            program.append(f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _van van")
            program.append("printf '%s\\t' \"${COMPREPLY[@]}\"; echo")
        done = subprocess.run(
            ["bash", "--norc", "-c", "\n".join(program)], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return [[word for word in line.split("\t") if word] for line in done.stdout.splitlines()]

    return run


def test_bash_completes_verbs_recipes_and_subcommands(complete):
    verbs, tr, recipes, seg, bench, data = complete("", "tr", "train ", "train seg", "bench ", "data d")
    assert verbs == [*VERBS]
    assert tr == ["train"]
    assert recipes == [*RECIPES, *ALIASES]
    assert seg == ["segment"]
    assert bench == ["ops", "models", "sessions"]
    assert data == ["digits", "digit-scenes"]


def test_bash_completes_all_options_of_every_command(complete):
    commands = list_commands()
    completed = complete(*(f"{path} --" for path in commands))
    for path, options in zip(commands, completed, strict=True):
        assert options == [*(flag.option for flag in commands[path].flags() if flag.option), "--help"]


def test_bash_completes_options_in_the_middle_of_a_command_line(complete):
    early, late, alias = complete(
        "train classify --im", "train classify --data x --epochs 3 --im", "train finetune --data x --im"
    )
    assert early == late == alias == ["--image-size"]


def test_bash_completes_choices_and_nothing_where_any_value_is_valid(complete):
    precision, b, attached, epochs, shell = complete(
        "train digits --precision ",
        "train digits --precision b",
        "train digits --precision = f",
        "train digits --epochs ",
        "completion ",
    )
    assert precision == ["fp32", "bf16", "fp16"]
    assert b == ["bf16"]
    assert attached == ["fp32", "fp16"]
    assert epochs == []
    assert shell == ["bash", "zsh", "fish"]


def test_bash_completes_file_names_for_paths_and_positional_arguments(complete, tmp_path):
    (tmp_path / "a run.safetensors").touch()
    (tmp_path / "b").mkdir()
    lines = [
        "train digits --out a",
        "predict ",
        "predict x --json ",
        "predict x --draw b",
        "eval b --data ",
        "predict x --top ",
    ]
    out, first, after_switch, folder, data, top = complete(*lines)
    assert out == ["a run.safetensors"]
    assert {"a run.safetensors", "b"} <= set(first)
    assert first == after_switch == data
    assert folder == ["b"]
    assert top == []


def test_bash_completes_positional_arguments_after_the_values_of_an_option(complete, tmp_path):
    (tmp_path / "x").touch()
    box_needs, box_done, several = complete(
        "explain m --box 1 2 3 ", "explain m --box 1 2 3 4 x", "explain m --method x"
    )
    assert box_needs == []
    assert box_done == ["x"]
    assert several == []  # --method takes any number of values


def test_scripts_are_valid_shell_syntax(subtests, scripts):
    for shell in ["bash", "zsh", "fish"]:
        with subtests.test(shell=shell):
            if shutil.which(shell) is None:
                pytest.skip(f"{shell} is not installed")
            option = "--no-execute" if shell == "fish" else "-n"
            done = subprocess.run(
                [shell, option, scripts / f"van.{shell}"], capture_output=True, text=True, timeout=60, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")


def test_scripts_have_every_name_and_option(subtests, van, scripts):
    for shell in ["bash", "zsh", "fish"]:
        with subtests.test(shell=shell):
            text = (scripts / f"van.{shell}").read_text()
            commands = list_commands()
            for path, command in commands.items():
                assert path in text
                for flag in command.flags():
                    assert not flag.option or (f"-l {flag.option[2:]} " if shell == "fish" else flag.option) in text
                    assert all(choice in text for choice in flag.choices)
            ran = van("completion", shell)
            assert (ran.status, ran.err) == (0, "")
            assert len(ran.out) >= len(text)  # the names above, and the aliases of recipes


def test_printing_a_script_does_not_import_torch(run_python):
    code = "import sys; from van.cli.main import main; main(['completion', 'bash']); print('LOADED', 'torch' in {})"
    code = code.format("sys.modules")
    assert run_python(code).endswith("LOADED False\n")
