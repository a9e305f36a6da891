"""Imports run one way, nothing executes what it reads, files stay small."""

import ast
import fnmatch
import functools
import graphlib
import pathlib
import re
import statistics
import subprocess
import sys
import tomllib

import pytest

import satjax

ROOT = pathlib.Path(satjax.__file__).parent
FILES = sorted(
  str(path.relative_to(ROOT).with_suffix('')).replace('/', '.')
  for path in ROOT.rglob('*.py')
)
# A part imports from itself and from the rows above its own.
ROWS = [
  {'errors'},
  {'files', 'console', 'runtime', 'tree', 'distributed', 'hub'},
  {'sparsity', 'growth'},
  {'config'},
  {'flops', 'sharding'},
  {'data'},
  {'model'},
  {'generation'},
  {'interop'},
  {'train'},
  {'lab'},
  {'commands'},
  {'cli'},
  {'__main__', '__init__'},
]
# The files of the two ideas, as the README lists them.
IDEAS = ('tree', 'sparsity.*', 'growth.*', 'train.window', 'train.refresh')
MAX_IDEAS_LINES = 3500
MAX_LINES = 31_700
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MEDIAN_FUNCTION_LINES = 9


@functools.cache
def parse(module):
  path = ROOT / (module.replace('.', '/') + '.py')
  return ast.parse(path.read_text(), str(path))


def imports(tree):
  """Dotted names that a file imports, wherever in it the import stands."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, node
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute'
      for alias in node.names:
        yield f'{node.module}.{alias.name}', node


def part_of(module):
  """The file or folder of satjax that a dotted name lies in."""
  return module.split('.')[0]


def own_imports(module):
  """Modules of satjax that a module imports."""
  for name, _ in imports(parse(module)):
    if name.startswith('satjax.'):
      yield name.removeprefix('satjax.')


def row_of(module):
  for number, row in enumerate(ROWS):
    if part_of(module) in row:
      return number
  raise AssertionError(f'satjax/{part_of(module)} has no row in ROWS')


def test_imports_run_downwards_only():
  wrong = [
    (module, other)
    for module in FILES
    for other in own_imports(module)
    if part_of(other) != part_of(module) and row_of(other) >= row_of(module)
  ]
  assert not wrong


def test_the_package_names_public_functions_without_importing_them():
  assert not list(own_imports('__init__'))


def lines_of(module):
  path = ROOT / (module.replace('.', '/') + '.py')
  return len(path.read_text().splitlines())


def test_the_ideas_are_few_lines_and_the_readme_names_their_files():
  files = [f for f in FILES if any(fnmatch.fnmatch(f, i) for i in IDEAS)]
  assert sum(map(lines_of, files)) <= MAX_IDEAS_LINES
  layout = (ROOT.parent / 'README.md').read_text().partition('## Layout')[2]
  ideas = layout.partition('Around them')[0]
  assert f'under {MAX_IDEAS_LINES:,} lines' in ideas
  expected = {f.rpartition('.')[2] for f in files} - {'__init__'}
  assert set(re.findall(r'\b(\w+)\.py\b', ideas)) == expected
  page = (ROOT.parent / 'docs/read_the_code.md').read_text()
  assert f'under {MAX_IDEAS_LINES:,} lines' in page
  assert expected <= set(re.findall(r'\b(\w+)\.py\b', page))


def test_the_source_stays_small():
  assert sum(map(lines_of, FILES)) <= MAX_LINES


def room_of(module):
  """A part, or a folder of the lab."""
  return '.'.join(module.split('.')[: 2 if part_of(module) == 'lab' else 1])


def test_rooms_do_not_import_in_circles():
  graph = {
    room_of(module): {room_of(other) for other in own_imports(module)}
    for module in FILES
  }
  for module in FILES:
    graph[room_of(module)] |= {room_of(other) for other in own_imports(module)}
  for room, others in graph.items():
    others.discard(room)
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_neither_the_model_nor_what_it_stands_on_knows_the_ideas():
  wrong = [
    (module, other)
    for module in FILES
    if part_of(module) in ('model', 'data', 'generation', 'sharding')
    for other in own_imports(module)
    if part_of(other) in ('sparsity', 'growth')
  ]
  assert not wrong


def test_flax_stays_in_the_model():
  outside = {
    (module, name)
    for module in FILES
    for name, _ in imports(parse(module))
    if name.split('.')[0] == 'flax' and part_of(module) != 'model'
  }
  assert outside == {('train.state', 'flax.struct')}


FORBIDDEN_MODULES = {'pickle', 'cPickle', 'marshal', 'shelve', 'dill'}
FORBIDDEN_NAMES = {'eval', 'exec', '__import__'}
FORBIDDEN_ATTRIBUTES = {
  'torch.load',
  'yaml.load',
  'os.system',
  'os.popen',
  'builtins.eval',
  'builtins.exec',
}
FORBIDDEN_KEYWORDS = {'shell', 'allow_pickle', 'trust_remote_code'}


def dangers(tree):
  """What runs code that it reads, as (line, what)."""
  for name, node in imports(tree):
    if name.split('.')[0] in FORBIDDEN_MODULES or name in FORBIDDEN_ATTRIBUTES:
      yield node.lineno, name
  for node in ast.walk(tree):
    match node:
      # Loaded, that is: a field may be called `eval`.
      case ast.Name(id=name, ctx=ast.Load()) if name in FORBIDDEN_NAMES:
        yield node.lineno, name
      case ast.Attribute() if ast.unparse(node) in FORBIDDEN_ATTRIBUTES:
        yield node.lineno, ast.unparse(node)
      case ast.keyword(value=ast.Constant(value=False)):
        pass
      case ast.keyword(arg=name) if name in FORBIDDEN_KEYWORDS:
        yield node.value.lineno, name
      case ast.Constant(value=str(text)) if text in FORBIDDEN_KEYWORDS:
        yield node.lineno, text


def test_nothing_executes_what_it_reads():
  found = {module: list(dangers(parse(module))) for module in FILES}
  assert not {module: there for module, there in found.items() if there}


@pytest.mark.parametrize(
  'code',
  [
    'import pickle',
    'import pickle as p',
    'from marshal import loads',
    'import dill.settings',
    'def f():\n  import shelve',
    'import torch\ntorch.load(path)',
    'from torch import load',
    'import yaml\nread = yaml.load',
    'import os\nos.system("ls")',
    'from os import system',
    'eval("1")',
    'run = exec',
    'import builtins\nbuiltins.eval("1")',
    '__import__("os")',
    'subprocess.run("ls", shell=True)',
    'subprocess.run("ls", shell=flag)',
    'np.load(path, allow_pickle=True)',
    'load(path, trust_remote_code=trust)',
    'options = {"trust_remote_code": True}',
  ],
)
def test_the_scan_finds(code):
  assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize(
  'code',
  [
    'model.eval()',
    'import yaml\nyaml.safe_load(text)',
    'np.load(path, allow_pickle=False)',
    'evaluate = execute',
    'class Data:\n  eval: tuple = ()',
    'def evaluate(): "never eval(text)"',
  ],
)
def test_the_scan_lets_pass(code):
  assert not list(dangers(ast.parse(code)))


def test_importing_satjax_is_light():
  program = (
    'import sys, satjax; dir(satjax); '
    'print(*{name.partition(".")[0] for name in sys.modules})'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  loaded = set(done.stdout.split())
  assert 'satjax' in loaded
  heavy = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'numpy', 'ml_collections'}
  heavy |= {'tensorflow', 'torch', 'transformers', 'matplotlib', 'lm_eval'}
  assert not loaded & heavy


def test_every_public_name_is_there():
  for name in satjax.__all__:
    assert callable(getattr(satjax, name))
    assert name in dir(satjax)
  with pytest.raises(AttributeError, match='no_such_name'):
    satjax.no_such_name  # noqa: B018


# Imported where they are used, and in no file's head.
EXTRAS = {
  'tensorflow',
  'torch',
  'transformers',
  'matplotlib',
  'lm_eval',
  'tokenizers',
  'sentencepiece',
  'tensorflow_datasets',
  'pyarrow',
  'datasketch',
  'gguf',
  'huggingface_hub',
}


def test_extras_are_imported_where_they_are_used():
  in_heads = {
    (module, name.split('.')[0])
    for module in FILES
    for statement in parse(module).body
    if isinstance(statement, (ast.Import, ast.ImportFrom))
    for name, _ in imports(statement)
  }
  assert not [found for found in in_heads if found[1] in EXTRAS]


def test_files_are_short():
  long = {module: lines_of(module) for module in FILES}
  assert not {m: n for m, n in long.items() if n > MAX_FILE_LINES}


def test_functions_are_short():
  lengths = {}
  for module in FILES:
    for node in ast.walk(parse(module)):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        first = node.body[0]
        docs = 0
        if ast.get_docstring(node):
          docs = first.end_lineno - first.lineno + 1
        length = node.end_lineno - node.lineno + 1 - docs
        lengths[module, node.name, node.lineno] = length
  assert not {n: x for n, x in lengths.items() if x > MAX_FUNCTION_LINES}
  assert statistics.median(lengths.values()) <= MEDIAN_FUNCTION_LINES


def test_every_file_says_what_it_is_for():
  for module in FILES:
    if part_of(module) != module and module.endswith('__init__'):
      assert parse(module).body == []
    else:
      assert ast.get_docstring(parse(module)), module


def test_an_installed_package_has_its_files_that_are_no_code():
  text = (ROOT.parent / 'pyproject.toml').read_text()
  packed = tomllib.loads(text)['tool']['setuptools']['package-data']
  named = {
    path
    for package, patterns in packed.items()
    for pattern in patterns
    for path in (ROOT.parent / package.replace('.', '/')).glob(pattern)
  }
  there = {
    path
    for path in ROOT.rglob('*')
    if path.is_file() and path.suffix not in ('.py', '.pyc')
  }
  assert there and there == named
