"""Configuration of Sphinx: `make docs`. Everything is made from what is here; nothing comes from the network."""

import argparse
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import genimg_fast as gf
from genimg_fast.cli import make_parser

os.environ["COLUMNS"] = "100"  # the width of the commands' help

project = "genimg_fast"
copyright = "the authors of genimg_fast"
version = release = gf.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"genimg_fast {release}"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True


class PublicNames(SphinxDirective):
    """``.. public-names:: genimg_fast.ops`` documents all names that a package of ours exports and defines."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = importlib.import_module(self.arguments[0])
        lines = []
        things = {name: getattr(package, name) for name in sorted(package.__all__, key=str.lower)}
        things = {n: t for n, t in things.items() if callable(t) and t.__module__.startswith("genimg_fast")}
        # First all of them: a class inherits what is set to another one.
        for thing, signature in [(t, plain_signature(t)) for t in things.values() if not is_error(t)]:
            thing.__signature__ = signature
        for name, thing in things.items():
            lines.append(f".. auto{'class' if inspect.isclass(thing) else 'function'}:: {package.__name__}.{name}")
            if inspect.isclass(thing):
                lines.append("   :members:")
            lines.append("")
        return self.parse_text_to_nodes("\n".join(lines))


class Commands(SphinxDirective):
    """``.. commands::`` prints the help of every command, from its parser."""

    def run(self) -> list[nodes.Node]:
        sections = []
        for parser in leaves(make_parser()):
            section = nodes.section(ids=[nodes.make_id(parser.prog)], names=[parser.prog])
            section += nodes.title(text=parser.prog)
            section += nodes.literal_block(text=parser.format_help(), language="text")
            sections.append(section)
        return sections


class Trainables(SphinxDirective):
    """``.. trainables::`` lists what ``genimg-fast train`` knows."""

    def run(self) -> list[nodes.Node]:
        lines = [".. list-table::", "   :widths: auto", ""]
        for name in gf.training.list_trainables():
            thing = gf.training.find_trainable(name)
            command = f"`train {name} <commands.html#{nodes.make_id(f'genimg-fast train {name}')}>`__"
            lines += [
                f"   * - {command}",
                f"     - :py:class:`~genimg_fast.models.{thing.model.__name__}`",
                f"     - {thing.text}",
            ]
        return self.parse_text_to_nodes("\n".join(lines))


def is_error(thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, Exception)


def plain_signature(thing: Any) -> inspect.Signature:
    """Get a signature without ranges in its types; of a class, that of ``__init__``."""
    signature = inspect.signature(thing)
    hints = get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
    parameters = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in signature.parameters.values()]
    returns = signature.empty if inspect.isclass(thing) else hints.get("return", signature.empty)
    return signature.replace(parameters=parameters, return_annotation=returns)


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Go through the commands without subcommands."""
    if (
        prepare := getattr(parser, "prepare", None)
    ) is not None:  # some add their subcommands when they are called
        prepare([])
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not subparsers:
        yield parser
    for action in subparsers:
        for command in dict.fromkeys(action.choices.values()):
            yield from leaves(command)


def escape_stars(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Let the star of a shape, as in (N, C, *), be no emphasis."""
    lines[:] = [re.sub(r"(?<= )\*(?=[,)])", r"\\*", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.add_directive("public-names", PublicNames)
    app.add_directive("commands", Commands)
    app.add_directive("trainables", Trainables)
    app.connect("autodoc-process-docstring", escape_stars)
