"""What is installed of the package, without a clone of the repository."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
BUILD = 'from setuptools import build_meta as b; b.build_wheel("dist")'


def test_a_wheel_brings_its_recipes_along(tmp_path):
  clone, site, away = (tmp_path / name for name in ('clone', 'site', 'away'))
  away.mkdir()
  skip = shutil.ignore_patterns('__pycache__')
  for name in ('satjax', 'configs'):
    shutil.copytree(ROOT / name, clone / name, ignore=skip)
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, clone)
  command = [sys.executable, '-c', BUILD]
  subprocess.run(command, cwd=clone, check=True, capture_output=True)
  (wheel,) = (clone / 'dist').glob('*.whl')
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(site)
  there = {path.relative_to(ROOT) for path in ROOT.glob('configs/*.py')}
  assert there == {path.relative_to(site) for path in site.glob('configs/*.py')}
  code = (
    f'import sys; sys.path.insert(0, {str(site)!r})\n'
    'from satjax.config import file\n'
    'for name in "configs/tiny.py", "configs/lora.py": file.load(name)\n'
  )
  command = [sys.executable, '-P', '-c', code]
  done = subprocess.run(command, cwd=away, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert f'{site}/configs/tiny.py is used' in done.stderr


def test_a_script_beside_a_clone_gets_the_package(tmp_path):
  """And not the folder of that name, the clone, as a namespace."""
  (tmp_path / 'satjax').mkdir()
  script = tmp_path / 'mine.py'
  script.write_text('import satjax; print(satjax.Ladder)')
  plain = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  command = [sys.executable, str(script)]
  done = subprocess.run(command, env=plain, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'Ladder' in done.stdout
