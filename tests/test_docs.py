"""The documentation names what is there: places in the code, pages, links, public names, options and commands."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
import runpy
import shlex
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cached_property
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from napari_unsam import __main__ as batch
from unsam_mm.__main__ import build_parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8') for path in sorted(DOCS.rglob('*.md'))}
PAGES |= {name: (ROOT / name).read_text(encoding='utf-8') for name in ('README.md', 'CONTRIBUTING.md')}
CODE_BLOCK = re.compile(r'^```.*?^```', re.MULTILINE | re.DOTALL)
PLACE = re.compile(r'`((?:unsam_mm|napari_unsam|benchmarks|tools|tests)/[\w./]+\.py)(?:::([\w.]+))?`')
LINK = re.compile(r'\]\((?!https?:)([^)\s]+)\)')

# The names that others may rely on: these packages list them in `__all__`.
PUBLIC = ('unsam_mm', 'unsam_mm.models', 'unsam_mm.datasets', 'unsam_mm.evaluation', 'unsam_mm.engine')


class TestPlacesInTheCode:
    @pytest.mark.parametrize('page', PAGES)
    def test_that_a_page_names_exist(self, page):
        missing = [
            f'{path}::{name}'
            for path, name in PLACE.findall(PAGES[page])
            if not (ROOT / path).is_file() or not is_defined(ROOT / path, name)
        ]
        assert not missing, f'{page} names places that have moved; write their new names there'

    def test_answer_at_least_a_dozen_questions_in_two_hops(self):
        section = PAGES['docs/architecture.md'].split('## Where is ...?')[1].split('\n## ')[0]
        rows = [line for line in section.splitlines() if line.startswith('| ') and PLACE.search(line)]
        assert len(rows) >= 12
        assert all(len(PLACE.findall(row)) == 2 for row in rows)


def is_defined(path: Path, name: str) -> bool:
    """Whether a module defines a name, such as `Class.method`, a function, or a constant; '' is the module itself."""
    body = ast.parse(path.read_text(encoding='utf-8')).body
    for part in filter(None, name.split('.')):
        found = [node for node in body if part in names_of(node)]
        if not found:
            return False
        body = getattr(found[0], 'body', [])
    return True


def names_of(node: ast.stmt) -> set[str]:
    """What a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


class TestSite:
    def test_has_every_page_once_in_its_navigation(self):
        listed = list(leaves(config()['nav']))
        assert sorted(f'docs/{page}' for page in listed) == sorted(page for page in PAGES if page.startswith('docs/'))

    def test_needs_no_network(self):
        settings = config()
        assert settings['theme']['font'] is False
        assert not {'extra_javascript', 'repo_url'} & settings.keys()
        assert all((DOCS / path).is_file() for path in settings['extra_css'])

    def test_is_built_by_the_versions_that_the_extra_asks_for(self):
        lines = (ROOT / 'constraints-docs.txt').read_text(encoding='utf-8').splitlines()
        pins = dict(line.split('==') for line in lines if not line.startswith('#'))
        settings = ConfigParser()
        settings.read(ROOT / 'setup.cfg')
        for text in settings['options.extras_require']['docs'].split():
            requirement = Requirement(text)
            assert pins[requirement.name] in requirement.specifier

    @pytest.mark.parametrize('page', PAGES)
    def test_has_what_a_page_links_to(self, page):
        missing = []
        for target in LINK.findall(CODE_BLOCK.sub('', PAGES[page])):
            path, _, anchor = target.partition('#')
            file = (ROOT / page).parent / path if path else ROOT / page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                missing.append(target)
        assert not missing

    def test_uses_every_picture(self):
        shown = {Path(target).name for text in PAGES.values() for target in LINK.findall(text)}
        assert {path.name for path in (DOCS / 'images').iterdir()} <= shown


def config() -> dict:
    return yaml.safe_load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'))


def leaves(tree: object) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(tree, str):
        yield tree
    else:
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(branch)


def anchors(page: Path) -> set[str]:
    """The anchors of a page: its titles, and the names that are documented on it."""
    text = CODE_BLOCK.sub('', page.read_text(encoding='utf-8'))
    titles = re.findall(r'^#+ (.*)', text, re.MULTILINE)
    return {re.sub(r'[^\w-]', '', title.lower().replace(' ', '-')) for title in titles} | set(documented(text))


def documented(text: str) -> list[str]:
    return re.findall(r'^::: (\S+)', text, re.MULTILINE)


class Name:
    """A public name and what it stands for."""

    def __init__(self, path: str) -> None:
        package, _, name = path.rpartition('.')
        self.path, self.value = path, getattr(importlib.import_module(package), name)

    @cached_property
    def callables(self) -> dict[str, object]:
        """What can be called, by name: a function, or the public methods that a class itself defines."""
        if not inspect.isclass(self.value):
            return {self.path: self.value} if callable(self.value) else {}
        own = {name: member for name, member in vars(self.value).items() if is_public(name)}
        functions = {name: getattr(member, '__func__', member) for name, member in own.items()}
        # What a class of MMDetection asks for is documented there.
        inherited = {name for base in self.value.__mro__[1:] for name in vars(base)}
        methods = {name: one for name, one in functions.items() if inspect.isfunction(one) and name not in inherited}
        if '__init__' in vars(self.value):
            methods = {'': self.value} | methods
        return {f'{self.path}.{name}'.rstrip('.'): one for name, one in methods.items()}

    @cached_property
    def described(self) -> dict[str, str]:
        """The docstrings by name: of a class and its public members, or of a function."""
        if not inspect.isclass(self.value):
            return {self.path: inspect.getdoc(self.value) or ''} if callable(self.value) else {}
        members = {name: member for name, member in vars(self.value).items() if is_public(name)}
        texts = {
            f'{self.path}.{name}': (getattr(member, '__func__', member).__doc__ or '')
            for name, member in members.items()
            if callable(member) or isinstance(member, classmethod | property | cached_property)
        }
        return {self.path: self.value.__dict__.get('__doc__') or ''} | texts


def is_public(name: str) -> bool:
    return not name.startswith('_') or name == '__call__'


def public_names() -> list[str]:
    return [f'{package}.{name}' for package in PUBLIC for name in importlib.import_module(package).__all__]


class TestPublicNames:
    def test_are_all_in_the_reference(self):
        listed = [path for text in PAGES.values() for path in documented(text)]
        missing = [name for name in public_names() if name not in listed and name.rpartition('.')[0] not in listed]
        assert not missing

    @pytest.mark.parametrize('path', sorted({path for text in PAGES.values() for path in documented(text)}))
    def test_of_the_reference_exist(self, path):
        assert pkgutil.resolve_name(path) is not None

    def test_have_a_docstring(self):
        described = {key: text for path in public_names() for key, text in Name(path).described.items()}
        assert [name for name, text in described.items() if not text.strip()] == []

    def test_explain_their_arguments(self):
        lacking = []
        for path in public_names():
            for name, one in Name(path).callables.items():
                text = inspect.getdoc(one) or ''
                if lacks(one, text):
                    lacking.append(name)
        assert not lacking, 'these take arguments that no Args section explains'


def lacks(function: object, text: str) -> bool:
    """Whether several arguments of a function are neither listed in its docstring nor explained where it points to."""
    arguments = [name for name in inspect.signature(function).parameters if name not in ('self', 'cls')]
    listed = set(re.findall(r'^ {4}\**(\w+):', text, re.MULTILINE))
    if len(arguments) <= 2 and not inspect.isclass(function):
        listed |= (
            set(re.findall(r'\w+', text)) if len(arguments) == 2 else set(arguments)
        )  # a sentence says what they are
    return bool(set(arguments) - listed) and not re.search(r'\b([Ss]ee|[Ss]ame as|as in) `', text)


class TestCommandLine:
    PAGE = DOCS / 'api' / 'cli.md'

    @pytest.mark.parametrize('command', ['convert', 'demo', 'evaluate', 'generate', 'merge', 'weights', 'batch'])
    def test_options_of_a_command_are_on_the_page(self, command):
        parser = batch.build_parser() if command == 'batch' else build_parser()
        assert self.options_of_section(command) == options(commands(parser)[command])

    def test_options_of_training_and_testing_are_on_the_page(self, monkeypatch):
        monkeypatch.syspath_prepend(ROOT / 'tools')  # test.py imports train.py
        helps = [help_of(ROOT / 'tools' / f'{tool}.py') for tool in ('train', 'test')]
        offered = set(re.findall(r'^ +(--[\w-]+)', '\n'.join(helps), re.MULTILINE)) - {'--local_rank', '--help'}
        assert self.options_of_section('Training and testing') == offered

    def options_of_section(self, title: str) -> set[str]:
        section = self.PAGE.read_text(encoding='utf-8').split(f'\n## {title}\n')[1].split('\n## ')[0]
        return set(re.findall(r'^\| `(--[\w-]+)', section, re.MULTILINE))


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(actions[0].choices)


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {action.option_strings[-1] for action in parser._actions if action.option_strings} - {'--help'}


def help_of(tool: Path) -> str:
    parse, texts = runpy.run_path(str(tool))['parse_args'], []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, 'print_help', lambda self, file=None: texts.append(self.format_help()))
        with pytest.raises(SystemExit):
            parse(['--help'])
    return texts[0]


def shell_commands() -> Iterator[tuple[str, str]]:
    """The commands of all pages, without their comments."""
    for page, text in PAGES.items():
        for block in re.findall(r'```sh\n(.*?)```', text, re.DOTALL):
            for line in block.replace('\\\n', ' ').splitlines():
                yield page, ' '.join(shlex.split(line, comments=True))


class TestExamples:
    @pytest.mark.parametrize(
        ('page', 'command'), [pair for pair in shell_commands() if pair[1].startswith('python -m unsam_mm ')]
    )
    def test_commands_are_understood(self, page, command):
        build_parser().parse_args(command.split()[3:])

    @pytest.mark.parametrize(
        ('page', 'command'), [pair for pair in shell_commands() if pair[1].startswith('python -m napari_unsam ')]
    )
    def test_commands_without_a_window_are_understood(self, page, command):
        batch.build_parser().parse_args(command.split()[3:])

    @pytest.mark.parametrize('page', PAGES)
    def test_python_is_valid(self, page):
        for code in re.findall(r'```python\n(.*?)```', PAGES[page], re.DOTALL):
            compile(code, page, 'exec')

    def test_make_targets_exist(self):
        makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
        targets = {command.split()[1] for _, command in shell_commands() if command.startswith('make ')}
        assert {'demo', 'test', 'docs'} <= targets
        assert [target for target in targets if not re.search(rf'^{target}:', makefile, re.MULTILINE)] == []
