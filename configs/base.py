"""Every default, once, with its unit. Other configs change what differs.

    satjax train --config=configs/base.py --workdir=runs/base

trains a 5M-parameter byte-level Llama on the documentation texts of the Python
standard library: no download, no account.
"""

import ml_collections


def _mixed(**values) -> ml_collections.ConfigDict:
  """A group with keys that hold numbers, shares of the run or mappings."""
  return ml_collections.ConfigDict(values, type_safe=False)


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.model = ml_collections.config_dict.create(
    num_layers=6,  # transformer blocks; growth multiplies this
    embed_dim=256,  # width of the residual stream
    num_heads=8,  # query heads
    num_kv_heads=8,  # key/value heads; fewer than num_heads: grouped queries
    head_dim=32,  # width of one head; any even number
    mlp_dim=768,  # channels of the gated MLP
    vocab_size=320,  # rows of the embedding; at least the tokenizer's size
    vocab_multiple=0,  # rows are added, the mean of the others, until every
    # token has one and this divides their number, such as 64; 0: none are
    tied=False,  # one matrix for embedding and output
    rope_theta=10_000.0,  # base wavelength of the rotary positions, in tokens
    rope_scaling=(),  # for rows longer than trained: ('linear', factor), or
    # ('llama3', factor, low, high, original length) as Llama 3.1 has it
    sliding_window=0,  # tokens that a query sees, itself and those before it
    # in the row (Mistral); 0: the whole row
    norm_eps=1e-5,  # added to the mean square inside RMSNorm
    qkv_bias=False,  # of queries, keys and values (Qwen2)
    qk_norm=False,  # RMSNorm of each query and key (Qwen3)
    dropout=0.0,  # share of what attention and MLP add to the residual stream
    # that a training step leaves out, anew for each row and layer
    dtype='float32',  # of activations and of the matrices as they meet them;
    # 'bfloat16' on GPU and TPU. What trains is float32 either way
    attention='auto',  # by platform: CPU 'blocked', GPU 'cudnn', TPU 'splash';
    # 'xla' runs everywhere and holds a T x T matrix for each head
    scan=True,  # one compiled block for all layers; False: unrolled, which
    # compiles longer and runs a little faster
    remat='none',  # 'full': recompute blocks in the backward pass; 'minimal':
    # only what is no matmul, norms, rotations and SwiGLU
    init_from='',  # model directory to start from; it sets the keys above
    # from its config.json (all but dropout, dtype, attention, scan, remat;
    # vocab_size may ask for more, if the tokenizer has more tokens than it)
  )

  config.data = ml_collections.config_dict.create(
    train=('stdlib:docs',),  # sources, or (source, weight) pairs; where a
    # source has prompts and answers, the loss counts the answers alone
    eval=('stdlib:docs',),  # sources to evaluate: of those in `train` what is
    # held out, others whole, such as 'text:validation.txt'
    columns=(),  # fields of JSONL and Parquet: one with a text or a chat, or
    # two, prompt and answer; (): the usual names
    template='auto',  # how pairs and chats are written: 'model', as the chat
    # template of the tokenizer has it ('model:NAME': one of several); plain
    # (a new line between question and answer), bare (nothing there), alpaca,
    # llama2, llama3 or chatml. 'auto': 'model' if there is one, else plain
    reasoning='template',  # of messages: written as the template has it;
    # 'think': before the answer, in <think> tags; 'drop': left out
    unlearned='refuse',  # more than half of the documents, of which nothing is
    # learned (long prompts, empty answers); 'keep': only warn
    tokenizer='auto',  # that of the model of `init_from`; without one 'byte',
    # 256 bytes, begin and end of text. Or 'hf:PATH', 'sentencepiece:PATH'
    seq_len=256,  # tokens in a row
    packing='concat_then_split',  # documents end to end, cut at row ends;
    # 'best_fit': whole documents, rows filled up with nothing
    too_long='cut',  # what 'best_fit' does with longer documents; 'drop'
    attend='document',  # what a token sees: the past of its document; 'row':
    # of its row, one causal sequence, as many pre-training recipes have it
    held_out=0.05,  # share of the documents kept from training; 0: none, where
    # `eval` has files of its own
    test=0.0,  # share of the documents kept for final numbers; nothing is
    # chosen by them. The two shares are below 1 together
    seed=0,  # order of the rows
  )

  config.train = _mixed(
    num_steps=1000,  # optimizer steps
    batch_size=8,  # rows in an optimizer step, over all devices
    microbatch_size=0,  # rows in a forward pass; 0: the whole batch at once
    loss_chunk=0,  # tokens whose logits a device holds at once, which bounds
    # the memory of a large vocabulary; 0: all
    seed=0,  # initial weights and sampled selections
    log_every=10,  # steps between lines of metrics.jsonl
    eval_every=250,  # steps, or a share of the run such as 0.25; 0: at the end
    eval_batches=16,  # batches of each evaluation source, at most
    checkpoint_every=250,  # steps, or a share of the run; 0: at the end only
    keep_checkpoints=2,  # newest ones kept
    keep_best=0,  # kept besides: so many of the lowest held-out loss, the mean
    # over data.eval, of those saved at a step with an evaluation
    sample_prompts=(),  # texts to continue at every evaluation, or to answer,
    # where the run learns from chats: `samples.jsonl`
    sample_tokens=64,  # new ones of each, at most
  )

  # 'auto' is what suits how the run begins, by satjax/config/defaults.py: with
  # random weights | with `init_from` | with adapters (lora.rank).
  config.optimizer = _mixed(
    name='adamw',  # adamw, lion, adafactor, muon or sgd
    schedule='auto',  # 'cosine' | 'wsd' (warm up, hold, decay) | 'wsd'; or
    # 'constant'
    peak_lr='auto',  # after warm-up: 1e-3 | 8e-5 | 1.28e-3, the latter two of
    # models up to a width of 576; of twice that half as much
    end_lr='auto',  # at the last step: a tenth of the peak
    warmup_steps='auto',  # linear from 0, steps or a share of the run:
    # 50 | 0.1 | 0.1
    decay_steps='auto',  # linear decay at the end, steps or a share of the run;
    # schedule 'wsd' only: 0.2
    b1=0.9,  # decay of the first moment; momentum of sgd and muon
    b2=0.95,  # decay of the second moment
    eps=1e-8,  # added to the root of the second moment
    weight_decay='auto',  # decoupled, of matrices and not of norms:
    # 0.1 | 0.0 | 0.0
    clip_norm=1.0,  # global gradient norm; 0: no clipping
  )

  config.sparsity = _mixed(
    execution='compact',  # 'masked': the slow oracle, zeros instead of gathers
    # How much is left out, of which layers.
    head_rate=0.0,  # share of the attention heads left out; 0: off
    channel_rate=0.0,  # share of the MLP channels left out; 0: off
    layer_rate=0.0,  # share of the layers left out; 0: off
    layer_scale=(),  # a factor on the rates for each layer; 'depth': rising to
    # 1 at the last; (): all 1. One for all, or by axis: {'mlp': (1.0, 0.5)}
    dense_layers=(0, 0),  # layers at the (beginning, end) that stay whole
    embed='train',  # both tables of words; 'rest': while anything is left out
    channel_multiple=64,  # kept channels are a multiple; 128 on accelerators
    granularity='per_group',  # with grouped queries: as many heads of each
    # group; 'group': whole groups with their key/value; 'free': any (masked)
    shards=1,  # equal runs of neurons that keep as many each (mesh.tensor)
    # When.
    shape='ladder',  # 'linear': down a little every step (masked); 'reversed'
    split=2 / 3,  # share of the run at the full rate, before the ladder
    rungs=4,  # steps of the ladder back to dense; the last rung is dense
    warm_start=0.0,  # share of the run that is dense before anything else
    refresh_every=10,  # optimizer steps with the same selection
    # Which of them. One for all, or {'heads': ..., 'mlp': ..., 'layers': ...}.
    importance='auto',  # heads and mlp: uniform, magnitude, wanda, wanda_out,
    # maxip, maxip_mean, maxip_out, taylor; layers: uniform, influence,
    # sensitivity, cyclic (in turn). 'auto': wanda_out, maxip, influence
    balance=False,  # matrices of another scale count alike
    selection='sample',  # 'top_k', or 'sample' without replacement
    temperature=1.0,  # of the sampling: towards 0 top_k, large uniform
    probe=0.125,  # share of the batch that importance looks at
    stale_scores=False,  # select by the scores of the refresh before
    # What becomes of the others. One for all, or by axis.
    omitted_forward='auto',  # 'skip', the paper's: nothing; 'mean': their mean
    # output, a constant (not of layers); 'exact': computed, no gradient goes
    # through them; 'through': one does, and they have none of their own.
    # 'auto': 'exact', which ends far below 'skip' on a real model; 'skip' where
    # neurons are left out beside adapters, and with what is marked *
    rescale='none',  # 'inverse'*: outputs over the kept share; 'energy'*: over
    # the root of the kept share of squared scores
    omitted='frozen',  # moments and decay of omitted rows rest; 'decayed'*:
    # they run on a zero gradient
    bias_correction='global',  # 'per_neuron': Adam counts each neuron's steps
    rest='device',  # where omitted rows rest; 'host': pinned host memory
  )

  config.growth = ml_collections.config_dict.create(
    hops=(),  # (at_tokens, operator, target): grow once so many are read, such
    # as (10_000_000, 'stack', 4) or (0, 'direct', {'mlp_dim': 1024}); a tuple
    # of (operator, target) grows in several ways at once. At the end may come
    # {'freeze_tokens': N, 'trains': 'new+head'}: old layers stand still
    opt_state='grow',  # moments follow; 'reset': start from zero; 'reset_new':
    # those of new layers do
    learning_rate='continue',  # 'restart': warm up and decay anew, if it grew
  )

  config.lora = ml_collections.config_dict.create(
    rank=0,  # of the adapters that train in place of the model, which stands
    # still; 0: off
    alpha=16.0,  # their products are scaled by alpha / rank; what
    # docs/methods.md measures has rank 16, alpha 32 and all seven matrices
    targets=('query', 'value'),  # matrices that have one; also key, output,
    # gate, up and down; and embed and unembed, the tables of words, where
    # tokens are new or were never trained
  )

  config.mesh = ml_collections.config_dict.create(
    data=-1,  # copies of the model; -1: all remaining devices
    fsdp=1,  # shards of the parameters along embed_dim
    tensor=1,  # shards of heads, channels and vocabulary
  )

  config.lock()
  return config
