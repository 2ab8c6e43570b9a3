"""Laws and literal figures of the sample model, examples/gpt.py."""

import importlib.util
import math
from itertools import pairwise
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import flex_attention

from lightning_lance.serving.batches import Collator
from tests.support.paths import ROOT

spec = importlib.util.spec_from_file_location("gpt", ROOT / "examples" / "gpt.py")
gpt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpt)

# torch 2.13 deprecates what Lightning 2.6.6 calls for every loader
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


@pytest.fixture(autouse=True)
def seeded():
    """First weights that do not depend on which tests ran before."""
    torch.manual_seed(0)


SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16}


def make(**options):
    torch.manual_seed(0)
    return gpt.GPT(**{**SHAPE, "vocab_size": 64, **options})


def ids(*shape, vocab_size=64, seed=1):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


class Batches:
    """A loader whose batches are strided views, as LanceDataModule's are; each takes `seconds` on the clock."""

    def __init__(self, windows, seconds=0, clock=None):
        self.windows, self.seconds, self.clock = windows, seconds, clock

    def __len__(self):
        return len(self.windows)

    def __iter__(self):
        for window in self.windows:
            if self.clock:
                self.clock.now += self.seconds
            yield {"input_ids": window[:, :-1], "targets": window[:, 1:]}


class Data(lightning.LightningDataModule):
    """What the model asks of a datamodule: `vocab_size`, and batches."""

    def __init__(self, windows, vocab_size=64, clock=None):
        super().__init__()
        self.windows, self.vocab_size, self.clock = windows, vocab_size, clock

    def train_dataloader(self):
        return Batches(self.windows, 1, self.clock)

    def val_dataloader(self):
        return Batches(self.windows[:2], 100, self.clock)

    test_dataloader = predict_dataloader = val_dataloader


class Recorder(lightning.Callback):
    """Keeps what was logged after every batch."""

    def __init__(self):
        self.logged = []

    def on_train_batch_end(self, trainer, *_):
        self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    def of(self, name):
        return [row.get(name) for row in self.logged]


def quiet_trainer(**options):
    quiet = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
    fixed = {**dict.fromkeys(quiet, False), "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}
    return lightning.Trainer(**{**fixed, "limit_val_batches": 0, "log_every_n_steps": 1, **options})


def windows(count, vocab_size=64, rows=4):
    return [ids(rows, SHAPE["context_length"] + 1, vocab_size=vocab_size, seed=seed) for seed in range(count)]


# The network


def test_a_later_token_changes_no_earlier_logits():
    model, tokens = make(), ids(2, 16)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 64
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=0)
    assert (before[:, 9:] != after[:, 9:]).any(dim=2).all()


def test_the_order_of_earlier_tokens_matters():
    model = make(n_layer=1)
    swapped = model(torch.tensor([[5, 7, 9]]))[0][:, 2] - model(torch.tensor([[7, 5, 9]]))[0][:, 2]
    assert swapped.abs().max() > 1e-5


def test_rotary_scores_depend_on_the_distance_only():
    cos, sin = gpt.rotary_tables(torch.arange(50), 8)
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    scores = gpt.rotate(q.expand(50, 8), cos, sin) @ gpt.rotate(k.expand(50, 8), cos, sin).T
    for distance in range(50):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=2e-5)
    assert scores[:, 0].std() > 0.1
    torch.testing.assert_close(scores[0, 0], (q @ k.T).squeeze())  # position 0 does not turn


def test_rotation_is_multiplication_by_a_complex_number():
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    turned = gpt.rotate(x, *gpt.rotary_tables(torch.arange(3), 6))
    for position in range(3):
        for pair in range(3):
            z = complex(x[position, pair], x[position, pair + 3])
            z *= complex(math.cos(a := position * 10_000 ** (-2 * pair / 6)), math.sin(a))
            assert turned[position, pair].item() == pytest.approx(z.real, abs=1e-6)
            assert turned[position, pair + 3].item() == pytest.approx(z.imag, abs=1e-6)


def test_positions_stay_in_float32_when_the_model_does_not():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cos, _ = gpt.rotary_tables(torch.arange(2048), 64)
    torch.testing.assert_close(cos, torch.cos(torch.outer(torch.arange(2048.0), 10_000 ** (-torch.arange(32) / 32))))
    model, tokens = make(), ids(2, 16)
    exact = model(tokens)[0]
    logits, loss = model.to(torch.bfloat16)(tokens, tokens)
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(logits.float(), exact, rtol=0, atol=0.02)


def test_a_llama_of_the_same_weights_gives_the_same_logits():
    transformers = pytest.importorskip("transformers")
    model, tokens = make(), ids(2, 16)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    state = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
    state["lm_head.weight"] = model.embedding.weight
    for i, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv.weight.chunk(3)
        gate, up = block.mlp.gate_up.weight.chunk(2)
        weights = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
        weights |= {"self_attn.o_proj": block.attention.out.weight, "mlp.gate_proj": gate, "mlp.up_proj": up}
        weights |= {"mlp.down_proj": block.mlp.down.weight, "input_layernorm": block.norm_attention.weight}
        weights |= {"post_attention_layernorm": block.norm_mlp.weight}
        state |= {f"model.layers.{i}.{name}.weight": weight for name, weight in weights.items()}
    llama.load_state_dict(state)
    torch.testing.assert_close(model(tokens)[0], llama(tokens).logits, rtol=0, atol=1e-5)


def test_the_loss_starts_at_the_logarithm_of_the_vocabulary():
    _, loss = make(vocab_size=512)(ids(4, 16, vocab_size=512), ids(4, 16, vocab_size=512, seed=2))
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)


def test_the_loss_is_the_mean_over_targets_that_count():
    model, window = make(), ids(3, 17)
    inputs, targets = window[:, :-1], window[:, 1:]
    assert not targets.is_contiguous()
    logits, loss = model(inputs, targets)
    chosen = logits.log_softmax(dim=2).gather(2, targets[..., None])[..., 0]
    assert loss.item() == pytest.approx(-chosen.mean().item(), rel=1e-6)
    masked = targets.clone()
    masked[:, 5:] = -100
    assert model(inputs, masked)[1].item() == pytest.approx(-chosen[:, :5].mean().item(), rel=1e-6)


def test_only_what_the_mask_has_is_learned_and_nothing_has_no_loss():
    model = make()
    inputs, targets = ids(2, 16), ids(2, 16, seed=2)
    mask = torch.arange(32).reshape(2, 16) % 3 == 0
    for by_token in (False, True):
        loss = model(inputs, targets, loss_mask=mask, by_token=by_token)[1]
        expected = model(inputs, torch.where(mask, targets, -100), by_token=by_token)[1]
        if by_token:
            assert torch.equal(loss[1], expected[1])
            loss, expected = loss[0], expected[0]
        assert torch.allclose(loss, expected)
        nothing = model(inputs, targets, loss_mask=torch.zeros_like(mask), by_token=by_token)[1]
        assert (nothing[0] if by_token else nothing) == 0


def test_the_losses_of_tokens_change_nothing_of_the_training():
    model, window = make(), ids(3, 17)
    inputs, targets = window[:, :-1], window[:, 1:].clone()
    targets[:, 5:7] = -100
    found = []
    for by_token in (False, True):
        model.zero_grad()
        logits, loss = model(inputs, targets, by_token=by_token)
        mean, losses = loss if by_token else (loss, None)
        mean.backward()
        found.append([mean.detach(), *(weight.grad.clone() for weight in model.parameters())])
    for plain, watched in zip(*found, strict=True):
        assert torch.equal(plain, watched)
    assert not losses.requires_grad
    expected = F.cross_entropy(logits.detach().flatten(0, 1), targets.flatten(), reduction="none").view(3, 16)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)


class Asks(lightning.Callback):
    needs_token_losses = True


@pytest.mark.parametrize("asked", [False, True])
def test_the_losses_of_tokens_are_returned_where_a_callback_needs_them(asked: bool):
    outputs = []
    keeps = lightning.pytorch.callbacks.LambdaCallback(on_train_batch_end=lambda *given: outputs.append(given[2]))
    callbacks = [keeps, Asks()] if asked else [keeps]
    quiet_trainer(max_steps=1, callbacks=callbacks).fit(gpt.GPTModule(**SHAPE), datamodule=Data(windows(3)))
    assert {*outputs[0]} == ({"loss", "token_losses"} if asked else {"loss"})


def test_embedding_and_head_are_one_tensor():
    model = make()
    assert [name for name, weight in model.named_parameters() if 64 in weight.shape] == ["embedding.weight"]
    model(torch.tensor([[3]]), torch.tensor([[4]]))[1].backward()
    assert model.embedding.weight.grad[9].abs().sum() > 0  # the head's part: 9 is neither input nor target
    with torch.no_grad():
        before = model(torch.tensor([[3]]))[0]
        model.embedding.weight[9] *= 2
        after = model(torch.tensor([[3]]))[0]
    torch.testing.assert_close(after[..., 9], 2 * before[..., 9])


def test_the_layers_that_write_to_the_stream_start_smaller():
    model = make(n_layer=8, n_embd=128)
    block = model.blocks[3]
    for weight in (block.attention.qkv.weight, block.mlp.gate_up.weight, model.embedding.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    for weight in (block.attention.out.weight, block.mlp.down.weight):
        assert weight.std().item() == pytest.approx(0.005, rel=0.05)


def test_the_124m_shape_has_gpt_2s_number_of_parameters():
    with torch.device("meta"):
        model = gpt.GPT(n_layer=12, n_head=12, n_embd=768, context_length=1024, vocab_size=50_257)
    assert model.num_parameters == 123_551_232
    assert model.num_parameters == pytest.approx(124e6, rel=0.02)
    assert model.flops_per_token == 6 * 123_551_232 + 12 * 12 * 768 * 1024


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": 33}, "heads of unequal size.* multiple of 2 \\* n_head = 4"),
        ({"n_embd": 34}, "heads of odd size 17.* multiple of 2 \\* n_head = 4"),
    ],
)
def test_a_width_without_even_heads_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *[(name, 0, "a whole number from 1 on") for name in ("n_layer", "n_head", "n_embd", "context_length")],
        ("n_layer", "abc", "a whole number from 1 on"),
        ("n_layer", 1.5, "a whole number from 1 on"),
        ("learning_rate", "x", "a number above 0, such as 6e-4"),
        ("learning_rate", -1e-3, "a number above 0, such as 6e-4"),
        ("min_learning_rate_ratio", 2, "a share, 0 to 1"),
        ("weight_decay", -0.1, "a number from 0 on"),
        ("warmup_steps", None, "a number of steps from 0 on"),
    ],
)
def test_a_value_that_cannot_be_is_refused(name, value, expected):
    with pytest.raises(gpt.ModelError) as refused:
        gpt.GPTModule(**{**SHAPE, name: value})
    assert str(refused.value) == f"got {name}={value!r}, expected {expected}."


def test_the_weights_of_another_model_are_refused_before_torch_names_each(tmp_path):
    data, trainer = Data(windows(1)), quiet_trainer(max_steps=1)
    trainer.fit(gpt.GPTModule(**SHAPE), datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    wide = gpt.GPTModule(**{**SHAPE, "n_embd": 2 * SHAPE["n_embd"]})
    with pytest.raises(gpt.ModelError, match=r"another model \(n_embd: 32 -> 64\)"):
        quiet_trainer(max_steps=2).fit(wide, datamodule=data, ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    # Rotary positions have no weights.
    longer = gpt.GPTModule(**{**SHAPE, "context_length": 2 * SHAPE["context_length"]})
    quiet_trainer(max_steps=2).fit(longer, datamodule=data, ckpt_path=tmp_path / "x.ckpt", weights_only=True)


def test_an_input_longer_than_context_length_is_refused():
    with pytest.raises(ValueError, match="input_ids of 17 tokens, expected at most context_length=16"):
        make()(ids(1, 17))


# Documents


def pieces(window, eos_id):
    """The documents of a window (T,), each with its EOS."""
    cuts = [0, *(i + 1 for i in range(len(window) - 1) if window[i] == eos_id), len(window)]
    return [window[low:high] for low, high in pairwise(cuts)]


def loss_of_separate_documents(model, windows, eos_id):
    documents = [piece for window in windows for piece in pieces(window, eos_id) if len(piece) > 1]
    losses = [(len(piece) - 1) * model(piece[None, :-1], piece[None, 1:])[1] for piece in documents]
    return sum(losses) / sum(len(piece) - 1 for piece in documents)


def packed(windows, eos_id=0):
    """A batch as LanceDataModule makes it, of the documents in some windows."""
    maker = Collator(eos_id, document_ids=True, position_ids=True, mask_boundary_targets=True)
    return maker(windows.numpy(), np.zeros(len(windows), np.int64), np.zeros(len(windows), np.int64))


def windows_of_documents(seed, share=0.2, device="cpu"):
    window = ids(3, 17, vocab_size=63, seed=seed) + 1
    window[torch.rand(3, 17, generator=torch.Generator().manual_seed(seed)) < share] = 0
    window[1, :4] = torch.tensor([0, 0, 5, 0])  # EOS at first, and several
    window[2, -2:] = 0  # and at last
    return window.to(device)


def assert_packed_is_separate(model, window, exact):
    def gradient(loss):
        model.zero_grad()
        loss.backward()
        return [weight.grad.clone() for weight in model.parameters()]

    batch = {name: tensor.to(window.device) for name, tensor in packed(window.cpu()).items()}
    together = model(batch["input_ids"], batch["targets"], batch["document_ids"], batch["position_ids"])[1]
    apart = loss_of_separate_documents(model, window, 0)
    torch.testing.assert_close(together, apart, rtol=0, atol=exact)
    for one, other in zip(gradient(together), gradient(apart), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=exact)


@pytest.mark.parametrize("seed", range(5))
def test_documents_in_one_window_are_learned_as_if_they_were_alone(seed):
    assert_packed_is_separate(make(), windows_of_documents(seed), exact=1e-5)


@pytest.mark.skipif(
    not hasattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"), reason="this torch has no switch for it"
)
def test_flex_attention_attends_as_the_other(monkeypatch):
    """Uncompiled, which CPUs are able to do, without gradients."""
    model, batch = make(), packed(windows_of_documents(0))
    with torch.no_grad():
        expected = model(batch["input_ids"], None, batch["document_ids"])[0]
        monkeypatch.setattr(gpt, "compiled", lambda function: function)
        blocks = gpt.document_mask(batch["document_ids"], flex=True)
        monkeypatch.setattr(gpt, "document_mask", lambda document_ids, flex: blocks)
        monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        flexible = model(batch["input_ids"], None, batch["document_ids"])[0]
    torch.testing.assert_close(flexible, expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled FlexAttention learns on CUDA only")
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own, on importing its compiler
@pytest.mark.parametrize("compile_model", [False, True])
def test_documents_are_learned_alone_on_a_gpu_too(compile_model):
    model = make().cuda()
    if compile_model:
        model.compile()
    assert_packed_is_separate(model, windows_of_documents(0, device="cuda"), exact=1e-3)


def test_a_token_changes_nothing_in_other_documents():
    model, tokens = make(), ids(1, 16)
    document_ids = torch.tensor([[0] * 5 + [1] * 4 + [2] * 7], dtype=torch.int32)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 64
    moved = (model(tokens, None, document_ids)[0] != model(changed, None, document_ids)[0]).any(dim=2)[0]
    assert moved.tolist() == [False] * 6 + [True] * 3 + [False] * 7


def test_position_ids_are_where_tokens_are():
    model, tokens = make(), ids(2, 16)
    torch.testing.assert_close(
        model(tokens, position_ids=torch.arange(16).expand(2, 16))[0], model(tokens)[0], rtol=0, atol=0
    )
    stretched = model(tokens, position_ids=3 * torch.arange(16).expand(2, 16))[0]
    assert (stretched - model(tokens)[0]).abs().max() > 1e-4


def test_every_step_of_the_module_keeps_to_documents():
    window = windows_of_documents(0)
    data, recorder = Data([window]), Recorder()
    loader = torch.utils.data.DataLoader([packed(window)], batch_size=None)
    data.train_dataloader = data.val_dataloader = data.test_dataloader = data.predict_dataloader = lambda: loader
    module = gpt.GPTModule(**SHAPE)
    trainer = quiet_trainer(limit_val_batches=1.0, max_steps=1, callbacks=[recorder])
    val = trainer.validate(module, datamodule=data, verbose=False)[0]["val_loss"]
    expected = loss_of_separate_documents(module.model, window, 0).item()
    across = module.model(window[:, :-1], packed(window)["targets"])[1].item()
    assert abs(across - expected) > 1e-4
    test = trainer.test(module, datamodule=data, verbose=False)[0]["test_loss"]
    predicted = trainer.predict(module, datamodule=data)[0]
    trainer.fit(module, datamodule=data)
    assert [val, test, recorder.of("train_loss")[0]] == pytest.approx([expected] * 3, abs=1e-5)
    each = [loss_of_separate_documents(module.model, row[None], 0).item() for row in window]
    again = trainer.predict(module, datamodule=data)[0]
    assert again.tolist() == pytest.approx(each, abs=1e-5)
    assert predicted.shape == (3,)


# Generation


def test_generation_repeats_under_a_generator():
    model, prompt = make(), ids(2, 3)
    first, again, other = (
        model.generate(prompt, 12, top_k=20, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (2, 15)
    assert torch.equal(first[:, :3], prompt)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_generation_sees_the_last_context_length_tokens():
    model, prompt = make(), ids(2, 40)
    long = model.generate(prompt, 5, temperature=0)
    short = model.generate(prompt[:, -16:], 5, temperature=0)
    assert long.shape == (2, 45)
    assert torch.equal(long[:, 40:], short[:, 16:])


def test_generation_draws_from_the_models_distribution():
    model, prompt = make(vocab_size=3), torch.zeros(20_000, 1, dtype=torch.int64)
    model.embedding.weight.data *= 8  # far from uniform
    expected = (model(prompt[:1])[0][0, 0] / 2).softmax(dim=0)
    drawn = model.generate(prompt, 1, temperature=2.0, generator=torch.Generator().manual_seed(0))[:, 1]
    torch.testing.assert_close(drawn.bincount(minlength=3) / 20_000, expected, rtol=0, atol=0.015)
    two = model.generate(prompt, 1, top_k=2, generator=torch.Generator().manual_seed(0))[:, 1]
    assert set(two.tolist()) == set(expected.topk(2).indices.tolist())
    greedy = model.generate(prompt[:1], 4, temperature=0)
    assert torch.equal(greedy, model.generate(prompt[:1], 4, top_k=1))


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": 0}])
def test_generation_refuses_senseless_sampling(options):
    with pytest.raises(ValueError, match="expected temperature >= 0 and top_k >= 1"):
        make().generate(ids(1, 2), 1, **options)


# Training


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.2), (1, 0.4), (3, 0.8), (4, 1.0), (9, 0.55), (14, 0.1), (15, 0.1), (99, 0.1)]
)
def test_the_schedule_at_literal_steps(step, factor):
    assert gpt.cosine_with_warmup(step, warmup_steps=4, total_steps=14, min_ratio=0.1) == pytest.approx(factor)


def test_the_learning_rate_of_every_step_is_the_schedules():
    recorder = Recorder()
    module = gpt.GPTModule(**SHAPE, learning_rate=0.3, warmup_steps=2)
    quiet_trainer(max_steps=4, callbacks=[recorder]).fit(module, datamodule=Data(windows(9)))
    assert recorder.of("learning_rate") == pytest.approx([0.1, 0.2, 0.3, 0.165])


def test_a_periodic_text_is_learned():
    text = torch.arange(400) % 5
    data = Data([text[start : start + 8 * 17].view(8, 17) for start in (0, 1, 2, 3)], vocab_size=8)
    recorder = Recorder()
    module = gpt.GPTModule(**SHAPE, learning_rate=1e-2, warmup_steps=5)
    trainer = quiet_trainer(max_steps=60, max_epochs=-1, callbacks=[recorder], gradient_clip_val=1.0)
    trainer.fit(module, datamodule=data)
    losses = recorder.of("train_loss")
    assert losses[0] == pytest.approx(math.log(8), abs=0.1)
    assert losses[-1] < 0.05
    assert module.model.generate(torch.tensor([[3, 4]]), 20, temperature=0)[0, 2:].tolist() == [0, 1, 2, 3, 4] * 4


def test_weight_decay_falls_on_every_matrix_and_on_nothing_else():
    module = gpt.GPTModule(**SHAPE, weight_decay=0.25, betas=[0.8, 0.9])
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, datamodule=Data(windows(1)))
    decayed, kept = trainer.optimizers[0].param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.25, 0.0)
    assert decayed["betas"] == kept["betas"] == (0.8, 0.9)
    assert {weight.dim() for weight in decayed["params"]} == {2}
    assert {weight.dim() for weight in kept["params"]} == {1}
    grouped = [id(weight) for group in (decayed, kept) for weight in group["params"]]
    assert sorted(grouped) == sorted(id(weight) for weight in module.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_throughput_is_measured_over_the_logging_interval_without_validation(monkeypatch, accumulate):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(gpt, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    recorder = Recorder()
    module = gpt.GPTModule(**SHAPE, peak_flops=1e9)
    trainer = quiet_trainer(
        max_epochs=2,
        callbacks=[recorder],
        log_every_n_steps=2,
        limit_val_batches=1.0,
        val_check_interval=3,
        num_sanity_val_steps=1,
        accumulate_grad_batches=accumulate,
    )
    trainer.fit(module, datamodule=Data(windows(6), clock=clock))
    speeds = recorder.of("tokens_per_second")  # a batch of 4 x 16 tokens takes 1 s, a validation 200 s
    first = 2 * accumulate - 1
    assert speeds[:first] == [None] * first
    assert speeds[first:] == pytest.approx([64.0] * (12 - first))
    assert recorder.of("mfu")[-1] == pytest.approx(64 * module.model.flops_per_token / 1e9)


def test_without_a_known_peak_there_is_no_mfu():
    recorder = Recorder()
    quiet_trainer(max_steps=3, callbacks=[recorder]).fit(gpt.GPTModule(**SHAPE), datamodule=Data(windows(3)))
    assert recorder.of("tokens_per_second")[2] > 0
    assert recorder.of("mfu") == [None] * 3


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 0),
        ("Tesla T4", 0),
        ("", 0),
    ],
)
def test_peaks_by_the_names_of_gpus(gpu, peak):
    assert gpt.known_peak_flops(gpu) == peak


def test_evaluation_gives_the_mean_loss_and_prediction_that_of_each_window():
    module, data = gpt.GPTModule(**SHAPE), Data(windows(2))
    trainer = quiet_trainer(limit_val_batches=1.0)
    val = trainer.validate(module, datamodule=data, verbose=False)[0]["val_loss"]
    test = trainer.test(module, datamodule=data, verbose=False)[0]["test_loss"]
    predicted = trainer.predict(module, datamodule=data)
    assert [losses.shape for losses in predicted] == [(4,), (4,)]
    window = data.windows[1][2]
    alone = F.cross_entropy(module.model(window[None, :-1])[0][0], window[1:]).item()
    assert predicted[1][2].item() == pytest.approx(alone, rel=1e-5)
    assert val == pytest.approx(test) == pytest.approx(torch.cat(predicted).mean().item(), rel=1e-5)


def test_the_vocabulary_is_the_datamodules_and_checkpoints_know_it(tmp_path):
    module, data = gpt.GPTModule(**SHAPE), Data(windows(2, vocab_size=50), vocab_size=50)
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(module, datamodule=data)
    assert module.hparams["vocab_size"] == module.hparams_initial["vocab_size"] == 50
    trainer.save_checkpoint(tmp_path / "gpt.ckpt")
    assert torch.load(tmp_path / "gpt.ckpt", weights_only=True)["hyper_parameters"]["n_embd"] == 32
    loaded = gpt.GPTModule.load_from_checkpoint(tmp_path / "gpt.ckpt", weights_only=True)
    tokens = ids(2, 16, vocab_size=50)
    torch.testing.assert_close(loaded.model(tokens)[0], module.model(tokens)[0], rtol=0, atol=0)
    quiet_trainer(max_steps=1).fit(loaded, datamodule=data)  # the network that was loaded, not a new one
    fresh = gpt.GPTModule(**SHAPE)
    longer = quiet_trainer(max_steps=4)
    longer.fit(fresh, datamodule=data, ckpt_path=tmp_path / "gpt.ckpt", weights_only=True)
    assert longer.global_step == 4


def test_a_vocabulary_may_be_larger_than_the_datamodules_but_not_smaller():
    data = Data(windows(1))
    rounded = gpt.GPTModule(**SHAPE, vocab_size=128)
    quiet_trainer(max_steps=1).fit(rounded, datamodule=data)
    assert rounded.model.embedding.weight.shape == (128, 32)
    with pytest.raises(ValueError, match="vocab_size=63, expected at least the datamodule's 64"):
        quiet_trainer(max_steps=1).fit(gpt.GPTModule(**SHAPE, vocab_size=63), datamodule=data)


def test_a_vocabulary_nobody_knows_is_asked_for():
    with pytest.raises(ValueError, match="vocab_size=None and no datamodule"):
        gpt.GPTModule(**SHAPE).configure_model()
    with pytest.raises(ValueError, match="vocab_size=None and no datamodule"):
        quiet_trainer(max_steps=1).fit(gpt.GPTModule(**SHAPE), datamodule=Data(windows(1), vocab_size=None))


@pytest.mark.parametrize(("max_epochs", "length"), [(-1, 1), (1, None)])
def test_a_training_without_end_is_refused(max_epochs, length):
    data = Data(windows(1))
    if length is None:  # a stream: Lightning cannot tell its steps
        data.train_dataloader = lambda: iter(Batches(windows(1)))
    with pytest.raises(ValueError, match=f"max_steps=-1 and max_epochs={max_epochs}, expected a last step"):
        quiet_trainer(max_steps=-1, max_epochs=max_epochs).fit(gpt.GPTModule(**SHAPE), datamodule=data)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own, on importing its compiler
def test_compilation_keeps_the_keys_of_the_state():
    plain, compiled = (gpt.GPTModule(**SHAPE, vocab_size=64, compile=flag) for flag in (False, True))
    for module in (plain, compiled):
        module.configure_model()
        network = module.model
        module.configure_model()
        assert module.model is network
    assert compiled.model._compiled_call_impl is not None
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert not any("_orig_mod" in name for name in compiled.state_dict())
