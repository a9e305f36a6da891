"""Local tasks of lm-evaluation-harness, out of the docstrings of Python."""

import functools
import json

from tests.data import subword_samples

TASKS = ('choices', 'letters', 'finish', 'pages')
_YAML = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
output_type: {kind}
test_split: test
fewshot_split: test
doc_to_text: "{{{{text}}}}"
"""
_CHOICE = """\
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
_REST = {
  'choices': _CHOICE + '  - {metric: acc_norm, aggregation: mean}\n',
  'letters': _CHOICE,
  'finish': """\
doc_to_target: "{{rest}}"
generation_kwargs: {until: ["e", "qu"], max_gen_toks: 20, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
  'pages': """\
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
""",
}
# As LAMBADA: how likely is the last word, and is it the likeliest.
_REST['last'] = """\
doc_to_target: "{{rest}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
_KINDS = {
  'last': 'loglikelihood',
  'choices': 'multiple_choice',
  'letters': 'multiple_choice',
  'finish': 'generate_until',
  'pages': 'loglikelihood_rolling',
}


@functools.cache
def lines():
  """Sentences of 10 to 100 characters, all different."""
  texts = [getattr(str, name).__doc__ or '' for name in sorted(dir(str))]
  found = ' '.join(' '.join(texts).split()).split('. ')
  return [s for s in dict.fromkeys(found) if 10 <= len(s) <= 100]


def _examples(name, count):
  texts = lines()[:count]
  for number, text in enumerate(texts):
    words = text.split(' ')
    head, tail = ' '.join(words[: len(words) // 2]), ' '.join(words[-2:])
    others = [texts[(number + i) % count].split(' ')[-1] for i in (1, 2)]
    if name == 'choices':
      yield {'text': head, 'choices': [tail, *others], 'answer': number % 3}
    if name == 'letters':
      yield {'text': text, 'choices': list('ABCD'), 'answer': number % 4}
    if name == 'last':
      yield {'text': text.rpartition(' ')[0], 'rest': f' {words[-1]}'}
    if name == 'finish':
      yield {'text': head, 'rest': tail}
    if name == 'pages':
      yield {'text': '. '.join(texts[number : number + number % 4 + 1])}


def write(folder, names=TASKS, count=7):
  """Writes tasks with `count` examples each, one file of each in `folder`."""
  folder.mkdir()
  for name in names:
    data = folder / f'{name}.jsonl'
    data.write_text('\n'.join(map(json.dumps, _examples(name, count))))
    head = _YAML.format(
      name=name, data=data, cache=folder / 'cache', kind=_KINDS[name]
    )
    rest = _REST[name]
    if 'doc_to_text' in rest:
      head = head.replace('doc_to_text: "{{text}}"\n', '')
    (folder / f'{name}.yaml').write_text(head + rest)
  return folder


def named(root, begin):
  """A tokenizer that puts nothing before a text, whatever its begin is called.

  As that of Qwen2.5, where `begin` is None, and of SmolLM2, where it is not.
  """
  folder = root / f'begin-{begin is None}'
  folder.mkdir()
  subword_samples.chatml(folder)
  (folder / 'chatml.json').rename(folder / 'tokenizer.json')
  config = {'bos_token': begin, 'eos_token': '<|im_end|>'}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return f'hf:{folder}'


def begins():
  """A tokenizer.json that begins texts, as that of Llama 2 does."""
  described = subword_samples.llama_like()
  text = {'Sequence': {'id': 'A', 'type_id': 0}}
  described['post_processor'] = {
    'type': 'TemplateProcessing',
    'single': [{'SpecialToken': {'id': '<s>', 'type_id': 0}}, text],
    'pair': [text],
    'special_tokens': {'<s>': {'id': '<s>', 'ids': [1], 'tokens': ['<s>']}},
  }
  return described
