"""--help of every verb, recipe and sub-command: grouped options, real defaults, examples that can be run."""

import re
import shlex

from van.cli.arguments import ANY
from van.cli.commands import list_commands
from van.cli.train import GROUPS
from van.cli.verbs import VERBS

COMMANDS = list_commands()


def parse_help(text: str) -> dict[str, list[str]]:
    """Heading to the lines below it."""
    sections: dict[str, list[str]] = {"": []}
    for line in text.splitlines():
        heading = re.fullmatch(r"(\w[\w -]*):", line)
        if heading:
            sections[heading[1]] = []
        else:
            sections[[*sections][-1]].append(line)
    return sections


def examples_of(text: str) -> list[str]:
    return [line.strip() for line in parse_help(text)["Examples"] if line.startswith("  ")]


def test_help_has_usage_summary_and_status_0(subtests, van):
    for path in COMMANDS:
        for flag in ["--help", "-h"]:
            with subtests.test(path=path, flag=flag):
                ran = van(*path.split(), flag)
                assert (ran.status, ran.err) == (0, "")
                lines = ran.out.splitlines()
                assert lines[0].startswith(f"usage: van {path} ")
                assert lines[2] == f"{COMMANDS[path].summary}."


def test_options_are_in_named_groups_with_real_types_and_defaults(subtests, van):
    for path in COMMANDS:
        with subtests.test(path=path):
            text = van(*path.split(), "--help").out
            for leftover in (
                "{None}",
                "None|",
                "|None",
                "(default: )",
                "(default: None)",
                "(default: False)",
                "(default: ())",
            ):
                assert leftover not in text
            sections = parse_help(text)
            assert "Other options" not in sections
            groups = COMMANDS[path].grouped_flags()
            assert [*sections] == ["", *groups, "Help", "Examples"]
            for title, flags in groups.items():
                assert len(flags) <= 10
                for flag in flags:
                    (line,) = [line for line in sections[title] if line.startswith(f"  {flag.label}")][:1]
                    assert flag.help, line
            listed = [flag.name for flags in groups.values() for flag in flags]
            assert sorted(listed) == sorted(flag.name for flag in COMMANDS[path].flags())


def test_every_required_option_and_every_default_is_shown(subtests, van, monkeypatch):
    for path in COMMANDS:
        with subtests.test(path=path):
            monkeypatch.setenv("COLUMNS", "60")  # the narrowest layout: a default is never broken over two lines
            text = van(*path.split(), "--help").out
            for flag in COMMANDS[path].flags():
                section = text.split(f"\n  {flag.label}", 1)[1].split("\n  -", 1)[0]
                assert flag.describe_default() in section
                if flag.required:
                    assert "(required)" in section


def test_there_are_three_examples_or_more_and_their_options_exist(subtests, van):
    for path in COMMANDS:
        with subtests.test(path=path):
            examples = examples_of(van(*path.split(), "--help").out)
            assert len(examples) >= 3
            assert len(set(examples)) == len(examples)
            options = {flag.option for flag in COMMANDS[path].flags()}
            for example in examples:
                words = shlex.split(re.split(r" [|>] (?!van)", example)[0])
                command = words[words.index("van") + 1 :]
                assert command[: path.count(" ") + 1] == path.split(), example
                assert {word for word in command if word.startswith("--")} <= options, example


def test_a_verb_lists_its_subcommands_with_three_examples(subtests, van):
    for verb in ["train", "data", "bench"]:
        with subtests.test(verb=verb):
            ran = van(verb, "--help")
            assert (ran.status, ran.err) == (0, "")
            names = [path.split()[1] for path in COMMANDS if path.startswith(f"{verb} ")]
            assert all(
                re.search(rf"^  {name}  +{re.escape(COMMANDS[f'{verb} {name}'].summary)}$", ran.out, flags=re.M)
                for name in names
            )
            examples = examples_of(ran.out)
            assert len(examples) >= 3
            for example in examples:
                assert example.split()[2] in names


def test_every_verb_has_a_command_with_its_summary():
    assert {path.split()[0] for path in COMMANDS} == set(VERBS)
    assert all(COMMANDS[verb].summary == text for verb, text in VERBS.items() if verb in COMMANDS)


def test_groups_name_no_field_that_is_gone():
    fields = {flag.name for path, command in COMMANDS.items() if path.startswith("train ") for flag in command.flags()}
    assert {name for names in GROUPS.values() for name in names} == fields
    for path, command in COMMANDS.items():
        if not path.startswith("train "):
            assert {name for names in command.groups.values() for name in names} == {f.name for f in command.flags()}, (
                path
            )


def test_a_switch_that_is_on_by_default_is_shown_as_its_opposite(van):
    text = van("report", "--help").out
    assert "  --no-speed " in text
    assert "--speed" not in text


def test_flags_know_their_types():
    flags = {flag.name: flag for flag in COMMANDS["train detect"].flags()}
    assert (flags["epochs"].metavar, flags["lr"].metavar, flags["out"].metavar) == ("INT", "FLOAT", "PATH")
    assert (flags["scale"].metavar, flags["scale"].count) == ("FLOAT FLOAT", 2)
    assert flags["precision"].choices == ("fp32", "bf16", "fp16")
    assert (flags["resume"].metavar, flags["resume"].count) == ("", 0)
    (images,) = [flag for flag in COMMANDS["predict"].flags() if flag.name == "images"]
    assert (images.option, images.count, images.takes_path) == ("", ANY, True)
