"""The pages of the command line: one per verb, made from its parser"""
import argparse
import json
import re
from pathlib import Path

from dho_nb.cli.main import make_parser
from dho_nb.cli.options import STAGES

STAGE_TITLES = {"look": "Look at data and at what is known", "label": "Label", "train": "Train", "judge": "Judge", "use": "Use",
                "reproduce": "Reproduce the paper, compare many runs"}

def verbs(parser=None, prefix=""):
    "Yield the name and the parser of every verb; a word that other verbs begin with comes before them"
    parser = parser or make_parser()
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction): continue
        for word, made in action.choices.items():
            made.complete()  # its options are made when they are first asked for
            yield f"{prefix}{word}", made
            yield from verbs(made, f"{prefix}{word} ")

OUTPUTS = json.loads(Path(__file__).with_name("outputs.json").read_text())  # by outputs.py

def printed(name):
    "A command of this verb and what it printed"
    if name not in OUTPUTS: return []
    shown = OUTPUTS[name]
    return ["## Output", f"```shell\n{shown['command']}\n```", f"```text\n{shown['output']}\n```"]

def page_name(name): return name.replace(" ", "-")

def escaped(text):
    "Text as Markdown shows it"
    return re.sub(r"([\\`*_{}\[\]<>|$#])", r"\\\1", text)

def option_words(action):
    "An option as it is typed: its flags, each with the name of its value"
    words = action.metavar or action.dest.upper()
    words = " ".join(words) if isinstance(words, tuple) else words
    if action.nargs == "+": words += f" [{words} ...]"
    if not action.option_strings: return f"`{words}`"
    if action.nargs == 0: return ", ".join(f"`{flag}`" for flag in action.option_strings)
    return ", ".join(f"`{flag} {words}`" for flag in action.option_strings)

def option_groups(parser):
    "Yield each section's title and options, positional arguments first"
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if not isinstance(a, (argparse._SubParsersAction, argparse._HelpAction))]
        if actions: yield group.title, actions

def examples(epilog):
    "Examples as captions and commands that can be copied, and the sentences after them"
    listed, _, notes = epilog.strip().partition("\n\n")
    title, *lines = listed.splitlines()
    if not re.fullmatch(r"examples?:", title): return [escaped(epilog.strip())]
    command = lambda line: "dho" in line.split()[:1] or line.strip().startswith(("torchrun", "make", "pip"))
    parts = ["## Examples" if title == "examples:" else "## Example"]
    parts += [f"```shell\n{line.strip()}\n```" if command(line) else escaped(f"{line.strip()[:1].upper()}{line.strip()[1:]}") for line in lines]
    return [*parts, *(escaped(p) for p in notes.split("\n\n") if p.strip())]

def verb_page(name, parser):
    "A verb's page: what it does, examples, its options section by section"
    # format_usage wraps at the terminal's width, which is another one on each machine
    usage = re.sub(r"\s+", " ", parser.format_usage()).removeprefix("usage: ").strip()
    if len(usage) > 120: usage = f"dho {name} [options]"
    parts = [f"# `dho {name}`", f"*{escaped(parser.description)}*", f"```text\n{usage}\n```"]
    if parser.epilog: parts += examples(parser.epilog)
    parts += printed(name)
    below = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for choices in below:
        parts += ["## Verbs", *(f"[`dho {name} {word}`]({page_name(f'{name} {word}')})\n: {escaped(made.description)}"
                                for word, made in choices.items())]
    for title, actions in option_groups(parser):
        listed = "\n\n".join(f"{option_words(a)}\n: {escaped((a.help or '').replace('%%', '%'))}" for a in actions)
        parts.append(f"## {title[:1].upper()}{title[1:]}\n\n{listed}")
    return "\n\n".join(parts) + "\n"

def verb_index(toctree):
    "The list of all verbs in the order of work"
    made = list(verbs())
    stage = {name: parser.get_default("verb").stage for name, parser in made}
    made.sort(key=lambda item: STAGES.index(stage[item[0]]))
    parts = ["# Commands", "*One page per verb of `dho`, in the order of work. `dho VERB --help` prints the same.*"]
    for key in STAGES:
        parts.append(f"## {STAGE_TITLES[key]}")
        parts += [f"[`dho {name}`]({page_name(name)})\n: {escaped(parser.description)}" for name, parser in made
                  if stage[name] == key]
    return "\n\n".join(parts) + "\n\n" + toctree([page_name(name) for name, _ in made])
