"""Pruning on the exported graph: further ways in which channels are coupled, found on models that nobody had tried."""

from __future__ import annotations

import pkgutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pruning_patterns import IMAGE, TOKENS, Layers, conv, pooled, proved, settled
from torch import Tensor, nn

import edgekit


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_in_a_loop(kind: Any) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.shape[0], 20)
        state: Any = (hidden, hidden) if kind is nn.LSTMCell else hidden
        for t in range(3):
            state = m.cell(m.stem(x[:, t]), state)
        return m.head(state[0] if kind is nn.LSTMCell else state)

    model = Layers(forward, stem=nn.Linear(24, 16), cell=kind(16, 20), head=nn.Linear(20, 4))
    assert proved(model, TOKENS).model.state_dict()["cell.weight_hh"].shape[1] == 12


def test_as_many_groups_as_the_batch_has_images() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:  # StyleGAN2's modulated convolution: weights of its own for each image
        n, _, h, w = x.shape
        y = F.relu(m.stem(x))
        weight = m.weight * m.style(pooled(x)).view(n, 1, 16, 1, 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        y = F.conv2d(y.reshape(1, n * 16, h, w), weight.reshape(n * 20, 16, 3, 3), padding=1, groups=n)
        return m.head(pooled(F.relu(y.view(n, 20, h, w))))

    layers = {"stem": conv(3, 16), "style": nn.Linear(3, 16), "head": nn.Linear(20, 4)}
    result = proved(Layers(forward, **layers, weight=nn.Parameter(torch.randn(1, 20, 16, 3, 3))), IMAGE)
    assert result.model.state_dict()["weight"].shape == (1, 12, 10, 3, 3)


def test_one_image_slides_over_another() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = F.relu(m.stem(x))
        over = F.conv2d(y.reshape(1, n * 20, h, w), y[:, :, :3, :3].reshape(n * 20, 1, 3, 3), groups=n * 20)
        return m.head(over.reshape(n, 20, h - 2, w - 2))

    proved(Layers(forward, stem=conv(3, 20), head=conv(20, 1, 1)), IMAGE)


def test_depth_to_space_and_back_by_views() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = F.relu(m.a(x)).view(n, 8, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 32, h // 2, w // 2)
        y = F.relu(m.b(y)).view(n, 2, 2, 10, h // 2, w // 2).permute(0, 3, 4, 1, 5, 2).reshape(n, 10, h, w)
        return m.head(pooled(m.c(y)))

    result = proved(Layers(forward, a=conv(3, 8), b=conv(32, 40), c=conv(10, 8), head=nn.Linear(8, 4)), IMAGE)
    assert result.model.state_dict()["b.weight"].shape[:2] == (24, 20)


@pytest.mark.parametrize(
    "peak", [lambda y: y.max(-1).values, lambda y: y.sort(-1).values[..., 0], lambda y: y.amin(-1)]
)
def test_extremes_along_one_dimension_let_the_others_pass(peak: Any) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(peak(F.relu(m.a(x)).flatten(2)))

    proved(Layers(forward, a=conv(3, 20), head=nn.Linear(20, 4)), IMAGE)


def test_rows_added_at_computed_places() -> None:
    def forward(m: Any, x: Tensor, to: Tensor) -> Tensor:
        y = m.a(x[0])
        summed = torch.zeros_like(y).index_add(0, to[0], y)
        spread = torch.zeros_like(y).scatter_add(0, to[0][:, None].expand(-1, 20), m.b(F.relu(summed)))
        return m.head(F.relu(spread)).unsqueeze(0) + 0 * x[:, :, :4]

    layers = {"a": nn.Linear(24, 20), "b": nn.Linear(20, 20), "head": nn.Linear(20, 4)}
    model = settled(Layers(forward, **layers), (TOKENS, torch.tensor([[1, 0, 3, 3, 2]] * 2)))
    result = edgekit.prune(model, (TOKENS, torch.tensor([[1, 0, 3, 3, 2]] * 2)), ratio=0.4)
    assert result.macs[1] < 0.6 * result.macs[0], result.kept
    assert result.parity < 1e-5


def test_a_shuffle_by_computed_places() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        order = x[:, :, 0].argsort(1)[:, :, None].expand(-1, -1, 20)
        return m.head(F.relu(m.b(y.gather(1, order))).mean(1))

    proved(Layers(forward, a=nn.Linear(24, 20), b=nn.Linear(20, 20), head=nn.Linear(20, 4)), TOKENS, same=False)


def test_bilinear_and_cosine() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = F.relu(m.a(x)), F.relu(m.b(x))
        return m.head(F.relu(m.pair(a, b))) * F.cosine_similarity(m.c(a), m.d(b), -1).unsqueeze(-1)

    layers = {"a": nn.Linear(24, 20), "b": nn.Linear(24, 10), "pair": nn.Bilinear(20, 10, 20), "head": nn.Linear(20, 4)}
    proved(Layers(forward, **layers, c=nn.Linear(20, 10), d=nn.Linear(10, 10)), TOKENS)


def test_a_bag_of_embeddings() -> None:
    model = nn.Sequential(nn.EmbeddingBag(30, 20), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4))
    result = proved(model, torch.randint(0, 30, (2, 5)))
    assert result.model.state_dict()["0.weight"].shape == (30, 12)


def test_a_fourier_transform_over_the_tokens_and_complex_weights() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.fft.rfft(m.stem(x), dim=1)
        y = torch.einsum("nti,tio->nto", y, m.weight)
        y = torch.view_as_complex(torch.view_as_real(y) * 2)
        return m.head(F.gelu(m.up(torch.fft.irfft(y, n=5, dim=1))).mean(1))

    layers = {"stem": nn.Linear(24, 20), "up": nn.Linear(20, 30), "head": nn.Linear(30, 4)}
    weight = nn.Parameter(torch.randn(3, 20, 20, dtype=torch.cfloat) / 20)
    result = proved(Layers(forward, **layers, weight=weight), TOKENS)
    assert result.model.state_dict()["weight"].shape == (3, 12, 12)


def test_random_numbers_are_the_same_on_both_sides_of_the_proof() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.head(F.relu(m.b(y + torch.randn_like(y))).mean(1))

    layers = {"a": nn.Linear(24, 20), "b": nn.Linear(20, 20), "head": nn.Linear(20, 4)}
    result = proved(Layers(forward, **layers), TOKENS, same=False)
    assert result.model.state_dict()["b.weight"].shape == (12, 12)


def test_sizes_that_only_the_data_tells() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        sound = m.mask(torch.stft(x, 16, 8, window=m.window, return_complex=True).abs().transpose(1, 2))
        return torch.istft(torch.polar(sound.transpose(1, 2), sound.transpose(1, 2)), 16, 8, window=m.window)

    mask = nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 9))
    model = settled(Layers(forward, mask=mask, window=nn.Parameter(torch.hann_window(16), False)), torch.randn(2, 160))
    result = edgekit.prune(model, torch.randn(2, 160), ratio=0.4)
    assert result.macs[1] < 0.7 * result.macs[0], result.kept


def test_tied_weights_are_not_said_to_be_gone() -> None:
    from edgekit import console

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.a(m.embed(x)))

    model = Layers(forward, embed=nn.Embedding(30, 16), a=nn.Linear(16, 16), head=nn.Linear(16, 30, bias=False))
    model.head.weight = model.embed.weight
    console.clear_warnings()
    edgekit.prune(model, torch.randint(0, 30, (2, 5)))
    assert console.warnings() == []


@pytest.mark.parametrize("both", [False, True])
def test_an_lstm_with_a_projection(both: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y, (last, _) = m.cell(m.stem(x))
        return m.head(y.mean(1) + (torch.cat([last[-2], last[-1]], 1) if both else last[-1]))

    cell = nn.LSTM(24, 30, 2, batch_first=True, bidirectional=both, proj_size=10)
    head = nn.Linear(20 if both else 10, 4)
    weights = proved(Layers(forward, stem=nn.Linear(24, 24), cell=cell, head=head), TOKENS).model.state_dict()
    assert weights["cell.weight_hr_l1"].shape == (6, 18)


def test_group_norms_whose_groups_overlap_in_a_concatenation() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:  # a U-Net of a diffusion model: groups of 4, of 8 and of 12 channels
        a = m.norm_a(m.a(x))
        b = m.norm_b(m.b(F.silu(a)))
        return m.head(pooled(m.c(F.silu(m.norm_c(torch.cat([b, a], 1))))))

    layers = {"a": conv(3, 32), "b": conv(32, 64), "c": conv(96, 16), "head": nn.Linear(16, 4)}
    norms = {"norm_a": nn.GroupNorm(8, 32), "norm_b": nn.GroupNorm(8, 64), "norm_c": nn.GroupNorm(8, 96)}
    result = proved(Layers(forward, **layers, **norms), IMAGE, ratio=0.3, same=False)
    assert result.model.state_dict()["c.weight"].shape[1] == 72


def test_weights_mixed_for_each_image_from_a_bank() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:  # CondConv: the bank is flattened, mixed and unflattened
        n, _, h, w = x.shape
        mixed = m.gate(pooled(x)).softmax(1) @ m.bank.view(3, -1)
        y = F.conv2d(m.stem(x).reshape(1, n * 6, h, w), mixed.view(n * 20, 6, 3, 3), padding=1, groups=n)
        return m.head(pooled(F.relu(y.view(n, 20, h, w))))

    layers = {"gate": nn.Linear(3, 3), "stem": conv(3, 6), "head": nn.Linear(20, 4)}
    result = proved(Layers(forward, **layers, bank=nn.Parameter(torch.randn(3, 20, 6, 3, 3))), IMAGE)
    assert result.model.state_dict()["bank"].shape == (3, 12, 6, 3, 3)


@pytest.mark.parametrize("step", [1, 3])
def test_a_channel_that_a_slice_takes_alone_stays(step: int) -> None:
    """As FocalNet's gates: each weighs all channels of a level."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y, gates = m.stem(x).split([20, 3], 1)
        y = sum(F.gelu(m.level(y)) * gates[:, i : 3 if step == 3 else i + 1 : step] for i in (0, 1, 2)) + m.level(y)
        return m.head(pooled(y))

    result = proved(Layers(forward, stem=conv(3, 23), level=conv(20, 20), head=nn.Linear(20, 4)), IMAGE)
    assert result.model.state_dict()["stem.weight"].shape[0] == 12 + 3


@pytest.mark.parametrize("table", ["edgekit.pruners._coupling.RULES", "edgekit.pruners._rewrite.SIZES"])
def test_a_rule_that_raises_costs_ratio_and_is_called_a_fault(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.b(F.relu(m.a(x)).reshape(-1, 20)).view(-1, 5, 40))

    def failing(*arguments: Any) -> Any:
        raise TypeError("unforeseen")

    model = Layers(forward, a=nn.Linear(24, 20), b=nn.Linear(20, 40), head=nn.Linear(40, 4))
    edgekit.prune(model, TOKENS, ratio=0.0)  # fills the tables
    monkeypatch.setitem(pkgutil.resolve_name(table), "aten.reshape.default", failing)
    result = edgekit.prune(model, TOKENS, ratio=0.4)
    assert result.model.state_dict()["b.weight"].shape == (24, 20)
    reasons = {k["layer"]: k["reason"] for k in result.kept}
    assert "'reshape' fails (TypeError: unforeseen); please report it" in reasons["a"]
    assert reasons["reshape.default"] == reasons["a"]
    searched = edgekit.prune(model, TOKENS, target_macs=0.8, calibration=[(TOKENS, None)])
    assert searched.model.state_dict()["a.weight"].shape == (20, 24)  # and was not cut to see what that disturbs
    assert {k["layer"]: k["reason"] for k in searched.kept}["a"] == reasons["a"]


@pytest.mark.parametrize("learned", [False, True])
def test_whole_heads_go_where_rotation_binds_queries_and_keys_of_a_fused_projection(learned: bool) -> None:
    def turned(m: Any, x: Tensor) -> Tensor:
        angle = m.angle if learned else torch.arange(20.0).view(5, 4) / 20
        return x * angle.cos() + torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape) * angle.sin()

    def forward(m: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = m.qkv(x).reshape(n, t, 3, 6, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(turned(m, q), turned(m, k), v)
        return m.head(m.out(y.transpose(1, 2).reshape(n, t, 24)).mean(1))

    layers = {"qkv": nn.Linear(24, 72), "out": nn.Linear(24, 24), "head": nn.Linear(24, 4)}
    layers |= {"angle": nn.Parameter(torch.randn(5, 4))} if learned else {}
    result = proved(Layers(forward, **layers), TOKENS)
    assert result.model.state_dict()["qkv.weight"].shape == (48, 24)


@pytest.mark.parametrize("quiet", [nn.Dropout(0.5), nn.Dropout(0.0), nn.Identity()])
def test_dropout_hides_nothing_from_the_proof(quiet: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(24, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 4), quiet)
    assert edgekit.prune(model.eval(), TOKENS, ratio=0.4).parity > 0.0  # sums of 300 numbers and of 180 are never alike
