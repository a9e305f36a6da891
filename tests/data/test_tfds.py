"""Datasets of TFDS are read without TensorFlow, or refused in one line."""

import itertools
import json
import pathlib
import shutil
import sys

import pytest

from satjax import errors
from satjax.data import sources, tfds

NUM_EXAMPLES = 20


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The folder of a version, written by a builder without TensorFlow."""
  import tensorflow_datasets

  features = tensorflow_datasets.features
  text = features.Text()

  class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
    VERSION = tensorflow_datasets.core.Version('1.0.0')

    def _info(self):
      return tensorflow_datasets.core.DatasetInfo(
        builder=self,
        features=features.FeaturesDict(
          {
            'text': text,
            'label': features.ClassLabel(num_classes=2),
            'turns': features.Sequence({'role': text, 'content': text}),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {'train': self._examples(NUM_EXAMPLES), 'test': self._examples(3)}

    def _generate_examples(self):
      pass

    def _examples(self, count):
      for i in range(count):
        turns = [{'role': 'user', 'content': f'q{i}'}]
        turns.append({'role': 'assistant', 'content': f'a{i}'})
        yield i, {'text': f'text {i} \u00e9', 'label': i % 2, 'turns': turns}

  root = tmp_path_factory.mktemp('tfds')
  Tiny(data_dir=root, file_format='array_record').download_and_prepare()
  return root / 'tiny' / '1.0.0'


def read(name, columns=()):
  return list(sources.documents(f'tfds:{name}', columns))


def test_all_examples_are_read_once(folder):
  documents = read(folder)
  assert [d.id for d in documents[:2]] == [
    'tiny/1.0.0?train#0',
    'tiny/1.0.0?train#1',
  ]
  expected = {f'text {i} \u00e9' for i in range(NUM_EXAMPLES)}
  assert {d.text for d in documents} == expected
  assert len(documents) == NUM_EXAMPLES
  assert 'tensorflow' not in sys.modules


def test_splits_columns_and_names(folder, monkeypatch):
  assert len(read(f'{folder}?test')) == 3
  assert read(f'{folder}?train[:50%]')[0].text == read(folder)[0].text
  for document in read(folder, ('turns',)):
    user, assistant = document.messages
    assert user.content.replace('q', 'a') == assistant.content
  import tensorflow_datasets

  root = str(folder.parent.parent)
  constants = tensorflow_datasets.core.constants
  monkeypatch.setattr(constants, 'DATA_DIR', root)
  tensorflow_datasets.core.add_data_dir(root)
  assert read('tiny:1.0.0') == read(folder)


def test_chunks_are_all_examples(folder):
  found = sources.find(f'tfds:{folder}')
  some = list(found.chunks(found.size // 6))
  assert len(some) > 5
  texts = [[d.text for d in chunk.documents({})] for chunk in some]
  assert list(itertools.chain(*texts)) == [d.text for d in read(folder)]
  assert some[-1].done == found.size


def test_tfrecord_is_refused_in_one_line(folder, tmp_path):
  copy = tmp_path / 'tiny' / '1.0.0'
  shutil.copytree(folder, copy)
  described = json.loads((copy / 'dataset_info.json').read_text())
  described['fileFormat'] = 'tfrecord'
  (copy / 'dataset_info.json').write_text(json.dumps(described))
  with pytest.raises(
    errors.DataError, match='was prepared as tfrecord'
  ) as caught:
    read(copy)
  message = str(caught.value)
  assert "file_format='array_record'" in message
  assert 'parquet:GLOB' in message
  assert '\n' not in message


@pytest.mark.parametrize('name', ['c4', 'no_such_dataset', 'c4/en:3.0.1', '.'])
def test_dataset_that_is_not_there_is_refused_in_one_line(name):
  with pytest.raises(
    errors.DataError, match='is not a prepared dataset'
  ) as caught:
    read(name)
  assert "file_format='array_record'" in str(caught.value)
  assert '\n' not in str(caught.value)


def test_unknown_split_lists_the_splits(folder):
  with pytest.raises(errors.DataError, match="'valid'; it has train, test"):
    read(f'{folder}?valid')


def test_a_process_opens_a_split_once(folder):
  read(folder)
  assert tfds._opened(str(folder)) is tfds._opened(str(folder))
  assert isinstance(folder, pathlib.Path)
