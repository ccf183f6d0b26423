"""Pruning on the exported graph: one small module for each way in which channels are coupled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pruning_patterns import IMAGE, TOKENS, Layers, conv, pooled, proved, settled, zeroed
from torch import Tensor, nn

import edgekit
from edgekit import console
from edgekit.errors import InputError


def plain(m: Any, x: Tensor) -> Tensor:
    return m.head(pooled(F.relu(m.bn(m.b(F.relu(m.a(x)))))))


def test_plain_convolutions_norm_and_linear() -> None:
    result = proved(Layers(plain, a=conv(3, 20), b=conv(20, 30), bn=nn.BatchNorm2d(30), head=nn.Linear(30, 4)), IMAGE)
    rows = {row["layer"]: row["channels"] for row in result.table}
    assert rows == {"a": (20, 12), "b": (30, 18), "head": (4, 4)}
    assert result.kept == ({"layer": "head", "reason": "it is an output of the model"},)


def test_flatten_before_linear() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.adaptive_avg_pool2d(F.relu(m.a(x)), 2).flatten(1))

    proved(Layers(forward, a=conv(3, 20), head=nn.Linear(80, 4)), IMAGE)


def test_view_with_a_constant_size() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.adaptive_avg_pool2d(F.relu(m.a(x)), 2).view(-1, 80))

    proved(Layers(forward, a=conv(3, 20), head=nn.Linear(80, 4)), IMAGE)


def test_residual_add_ties_both_sides() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        return m.head(pooled(F.relu(x + m.bn(m.b(F.relu(m.a(x)))))))

    layers = {"stem": conv(3, 16), "a": conv(16, 24), "b": conv(24, 16), "bn": nn.BatchNorm2d(16)}
    proved(Layers(forward, **layers, head=nn.Linear(16, 4)), IMAGE)


def test_concatenation_keeps_branches_apart() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(m.join(torch.cat([F.relu(m.a(x)), F.relu(m.b(x)), x], 1))))

    layers = {"a": conv(3, 10), "b": conv(3, 20), "join": conv(33, 16), "head": nn.Linear(16, 4)}
    result = proved(Layers(forward, **layers), IMAGE)
    rows = {row["layer"]: row["channels"] for row in result.table}
    assert rows["a"] == (10, 6)
    assert rows["b"] == (20, 12)


def test_a_concatenation_that_is_the_output_leaves_only_its_makers_whole() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.cat([m.a(x), m.b(F.relu(m.c(x)))], 1)

    result = proved(Layers(forward, a=conv(3, 4), b=conv(20, 4), c=conv(3, 20)), IMAGE)
    assert {k["layer"] for k in result.kept} == {"a", "b"}


def test_depthwise_convolution() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(F.relu(m.bn(m.deep(F.relu(m.a(x)))))))

    layers = {"a": conv(3, 20), "deep": conv(20, 20, groups=20), "bn": nn.BatchNorm2d(20), "head": nn.Linear(20, 4)}
    proved(Layers(forward, **layers), IMAGE)


def test_depthwise_convolution_with_a_multiplier() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(F.relu(m.deep(F.relu(m.a(x))))))

    proved(Layers(forward, a=conv(3, 20), deep=conv(20, 40, groups=20), head=nn.Linear(40, 4)), IMAGE)


def test_grouped_convolution_keeps_groups_even() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(F.relu(m.group(F.relu(m.a(x))))))

    result = proved(Layers(forward, a=conv(3, 40), group=conv(40, 20, groups=4), head=nn.Linear(20, 4)), IMAGE)
    assert result.model.state_dict()["group.weight"].shape[:2] == (12, 6)


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def test_channel_shuffle_written_by_hand() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        left, right = shuffle(F.relu(m.a(x)), 2).chunk(2, 1)
        return m.head(pooled(shuffle(torch.cat([left, F.relu(m.b(right))], 1), 2)))

    proved(Layers(forward, a=conv(3, 20), b=conv(10, 10), head=nn.Linear(20, 4)), IMAGE)


def test_channel_shuffle_module() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(m.b(m.shuffle(F.relu(m.a(x))))))

    proved(Layers(forward, a=conv(3, 20), shuffle=nn.ChannelShuffle(4), b=conv(20, 8), head=nn.Linear(8, 4)), IMAGE)


def test_split_into_unequal_parts() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = torch.split(F.relu(m.a(x)), [8, 16], 1)
        return m.head(pooled(m.b(a)) * pooled(m.c(b)))

    proved(Layers(forward, a=conv(3, 24), b=conv(8, 12), c=conv(16, 12), head=nn.Linear(12, 4)), IMAGE)


def test_slices_of_channels() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        return m.head(pooled(torch.cat([m.b(y[:, :8]), y[:, 8:]], 1)))

    proved(Layers(forward, a=conv(3, 24), b=conv(8, 12), head=nn.Linear(28, 4)), IMAGE)


def test_every_second_channel() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        return m.head(pooled(m.b(y[:, ::2] * y[:, 1::2])))

    proved(Layers(forward, a=conv(3, 24), b=conv(12, 12), head=nn.Linear(12, 4)), IMAGE)


def test_zero_padded_shortcut() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        y = m.b(F.relu(m.a(x)))
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 5, 5))
        return m.head(pooled(F.relu(x + y)))

    layers = {"stem": conv(3, 10), "a": conv(10, 20), "b": nn.Conv2d(20, 20, 3, 2, 1), "head": nn.Linear(20, 4)}
    proved(Layers(forward, **layers), IMAGE)


def test_shortcut_padded_with_a_new_tensor() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        zeros = torch.zeros(x.shape[0], 10, x.shape[2], x.shape[3])
        return m.head(pooled(F.relu(torch.cat([x, zeros], 1) + m.a(x))))

    proved(Layers(forward, stem=conv(3, 10), a=conv(10, 20), head=nn.Linear(20, 4)), IMAGE)


def test_squeeze_and_excitation() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        gate = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
        return m.head(pooled(m.b(x * gate)))

    layers = {"a": conv(3, 24), "down": conv(24, 10, 1), "up": conv(10, 24, 1), "b": conv(24, 8)}
    proved(Layers(forward, **layers, head=nn.Linear(8, 4)), IMAGE)


def test_group_norm() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(F.relu(m.norm(m.a(x)))))

    result = proved(Layers(forward, a=conv(3, 32), norm=nn.GroupNorm(4, 32), head=nn.Linear(32, 4)), IMAGE, same=False)
    assert result.model.state_dict()["norm.weight"].shape == (20,)


def test_instance_norm_as_group_norm() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(F.relu(m.norm(m.a(x)))))

    proved(Layers(forward, a=conv(3, 32), norm=nn.GroupNorm(32, 32), head=nn.Linear(32, 4)), IMAGE)


def test_prelu_with_a_slope_each() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(m.act(m.a(x))))

    proved(Layers(forward, a=conv(3, 20), act=nn.PReLU(20), head=nn.Linear(20, 4)), IMAGE)


def test_layer_scale_and_layer_norm_in_a_convnext_block() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = m.norm(m.deep(x).permute(0, 2, 3, 1))
        y = m.down(F.gelu(m.up(y))) * m.gamma
        return m.head(pooled(x + y.permute(0, 3, 1, 2)))

    layers = {"stem": conv(3, 12), "deep": conv(12, 12, 7, groups=12), "norm": nn.LayerNorm(12)}
    layers |= {"up": nn.Linear(12, 48), "down": nn.Linear(48, 12), "head": nn.Linear(12, 4)}
    proved(Layers(forward, **layers, gamma=nn.Parameter(torch.rand(12))), IMAGE, same=False)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_transposed_convolution(groups: int) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(F.relu(m.up(F.relu(m.a(x))))))

    up = nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=groups)
    proved(Layers(forward, a=conv(3, 16), up=up, head=nn.Linear(16, 4)), IMAGE)


def test_pixel_shuffle_and_unshuffle() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.b(F.pixel_unshuffle(F.relu(m.a(x)), 2)))
        return m.head(pooled(m.c(F.pixel_shuffle(y, 2))))

    proved(Layers(forward, a=conv(3, 8), b=conv(32, 40), c=conv(10, 8), head=nn.Linear(8, 4)), IMAGE)


def test_gated_linear_units() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(m.b(F.glu(m.a(x), 1))))

    proved(Layers(forward, a=conv(3, 40), b=conv(20, 8), head=nn.Linear(8, 4)), IMAGE)


class Attention(nn.Module):
    """Multi-head attention as vision transformers write it: fused or separate projections, sizes in Python."""

    def __init__(self, *, fused: bool, flash: bool, heads: int = 3, width: int = 24) -> None:
        super().__init__()
        self.heads, self.width, self.fused, self.flash = heads, width, fused, flash
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        size = self.width // self.heads
        if self.fused:
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(x).view(n, t, self.heads, size).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * size**-0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, self.width))


class Transformer(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(24, 24)
        self.place = nn.Parameter(torch.randn(1, 5, 24))
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        self.attention = attention
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.up, self.down = nn.Linear(24, 60), nn.Linear(60, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.place
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_in_a_transformer(fused: bool, flash: bool) -> None:
    result = proved(Transformer(Attention(fused=fused, flash=flash)), TOKENS, same=False)
    sizes = {name: tuple(p.shape) for name, p in result.model.named_parameters()}
    if fused:
        assert sizes["attention.qkv.weight"] == (45, 14)
    else:
        assert sizes["attention.q.weight"] == (15, 14)
    assert sizes["attention.out.weight"] == (14, 15)
    assert sizes["up.weight"] == (36, 14)


def test_attention_without_norms_equals_the_zeroed_original() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.attention(F.relu(m.stem(x))).mean(1))

    layers = {"stem": nn.Linear(24, 24), "attention": Attention(fused=True, flash=False), "head": nn.Linear(24, 4)}
    proved(Layers(forward, **layers), TOKENS)


def test_torchs_own_attention_and_encoder_layer() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.layer(m.stem(x)).mean(1))

    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
    result = proved(Layers(forward, stem=nn.Linear(24, 24), layer=layer, head=nn.Linear(24, 4)), TOKENS, same=False)
    sizes = {name: tuple(p.shape) for name, p in result.model.named_parameters()}
    assert sizes["layer.self_attn.in_proj_weight"][0] < 72
    assert sizes["layer.linear1.weight"][0] < 48


def test_whole_heads_go_where_the_channels_of_a_head_can_not() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = m.values(x).view(n, t, 6, 4) * torch.arange(4, dtype=x.dtype).softmax(0)
        return m.head(m.out(y.reshape(n, t, 24)).mean(1))

    layers = {"values": nn.Linear(24, 24), "out": nn.Linear(24, 24), "head": nn.Linear(24, 4)}
    result = proved(Layers(forward, **layers), TOKENS)
    assert result.model.state_dict()["values.weight"].shape == (16, 24)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_recurrent_layers(kind: Any, both: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y, _ = m.cell(m.stem(x))
        return m.head(y[:, -1])

    width = 40 if both else 20
    cell = kind(24, 20, 2, batch_first=True, bidirectional=both)
    result = proved(Layers(forward, stem=nn.Linear(24, 24), cell=cell, head=nn.Linear(width, 4)), TOKENS)
    assert result.model.state_dict()["cell.weight_hh_l1"].shape[1] == 12


def test_embedding_and_tied_output() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.linear(F.gelu(m.a(m.embed(x))) + m.embed(x), m.embed.weight)

    tokens = torch.randint(0, 30, (2, 5))
    result = proved(Layers(forward, embed=nn.Embedding(30, 16), a=nn.Linear(16, 16)), tokens)
    assert result.model.state_dict()["embed.weight"].shape == (30, 10)


def test_frozen_and_integer_parameters_and_half_precision() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(F.relu(m.a(x)))) * m.scale

    scale = nn.Parameter(torch.tensor([1, 2, 3, 4]), requires_grad=False)
    model = Layers(forward, a=conv(3, 20), head=nn.Linear(20, 4), scale=scale)
    model.a.requires_grad_(False)
    result = edgekit.prune(model, IMAGE, ratio=0.4)
    assert result.macs[1] < 0.7 * result.macs[0]
    trains = {name: p.requires_grad for name, p in result.model.named_parameters()}
    assert trains == {"a.weight": False, "a.bias": False, "head.weight": True, "head.bias": True, "scale": False}
    half = edgekit.prune(model.to(torch.bfloat16), IMAGE.to(torch.bfloat16), ratio=0.4)
    assert half.model.state_dict()["a.weight"].dtype == torch.bfloat16
    assert half.macs[1] < 0.7 * half.macs[0]


def test_hooks_act_in_the_graph_and_are_said() -> None:
    from edgekit import console

    console.clear_warnings()
    model = model_of()
    model.a.register_forward_hook(lambda module, inputs, output: output * 2)
    result = edgekit.prune(model, IMAGE, ratio=0.0)
    torch.testing.assert_close(result.model(IMAGE), model(IMAGE))
    assert any("hooks" in text and "'a'" in text for text in console.warnings())


def test_a_module_used_twice_stays_one() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.stem(x))
        return m.head(pooled(m.twice(F.relu(m.twice(y)))))

    result = proved(Layers(forward, stem=conv(3, 16), twice=conv(16, 16), head=nn.Linear(16, 4)), IMAGE)
    assert result.model.state_dict()["twice.weight"].shape[:2] == (10, 10)


def test_weight_standardization_is_folded_first() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
            return F.conv2d(x, w, self.bias, padding=1)

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(pooled(F.relu(m.b(F.relu(m.a(x))))))

    model = settled(Layers(forward, a=Standardized(3, 16, 3), b=Standardized(16, 16, 3), head=nn.Linear(16, 4)), IMAGE)
    result = edgekit.prune(model, IMAGE, ratio=0.4)
    assert result.macs[1] < 0.6 * result.macs[0]
    assert result.parity < 1e-5
    torch.testing.assert_close(edgekit.prune(model, IMAGE, ratio=0.0).model(IMAGE), model(IMAGE))


def test_a_norm_written_by_hand() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.scale
        return m.head(F.relu(m.a(x)).mean(1))

    layers = {"stem": nn.Linear(24, 24), "a": nn.Linear(24, 32), "head": nn.Linear(32, 4)}
    proved(Layers(forward, **layers, scale=nn.Parameter(torch.rand(24) + 0.5)), TOKENS, same=False)


def test_an_operation_without_a_rule_freezes_what_it_touches_and_is_named() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        return m.head(m.free(torch.cholesky_solve(pooled(y).unsqueeze(-1), torch.eye(16)).squeeze(-1)))

    layers = {"a": conv(3, 16), "free": nn.Linear(16, 20), "head": nn.Linear(20, 4)}
    result = edgekit.prune(settled(Layers(forward, **layers), IMAGE), IMAGE, ratio=0.4)
    kept = {k["layer"]: k["reason"] for k in result.kept}
    assert "cholesky_solve" in kept["a"]
    assert "no rule" in kept["a"]
    assert result.model.state_dict()["free.weight"].shape == (12, 16)


# ── what is asked for ────────────────────────────────────────────────────────────────────


def model_of(width: int = 20) -> nn.Module:
    layers = {"a": conv(3, width), "b": conv(width, 30), "bn": nn.BatchNorm2d(30), "head": nn.Linear(30, 4)}
    return settled(Layers(plain, **layers), IMAGE)


def test_ratio_zero_changes_nothing() -> None:
    model = model_of()
    result = edgekit.prune(model, IMAGE, ratio=0.0)
    assert result.macs[0] == result.macs[1]
    assert torch.equal(result.model(IMAGE), model(IMAGE))


@pytest.mark.parametrize("scope", ["local", "global", "sensitivity"])
@pytest.mark.parametrize(("macs", "parameters"), [(0.5, 0.9), (0.9, 0.5), (0.5, 0.5)])
def test_two_goals_are_both_kept(scope: str, macs: float, parameters: float) -> None:
    result = edgekit.prune(model_of(40), IMAGE, target_macs=macs, target_parameters=parameters, scope=scope)
    assert result.macs[1] <= macs * result.macs[0]
    assert result.parameters[1] <= parameters * result.parameters[0]


@pytest.mark.parametrize("ratio", [1.0, -0.1, float("nan"), "half"])
def test_a_ratio_out_of_range_is_refused(ratio: Any) -> None:
    with pytest.raises(InputError, match=r"must be in \[0, 1\)"):
        edgekit.prune(model_of(), IMAGE, ratio=ratio)


def test_the_highest_ratio_leaves_one_channel() -> None:
    result = edgekit.prune(model_of(), IMAGE, ratio=0.99)
    assert result.model.state_dict()["a.weight"].shape[0] == 1
    assert result.model(IMAGE).isfinite().all()


def test_magnitude_removes_the_weakest() -> None:
    model = model_of()
    with torch.no_grad():
        model.a.weight[[2, 5, 11]] *= 0.01
        model.b.weight[:, [2, 5, 11]] *= 0.01
    places = edgekit.prune(model, IMAGE, ratio=0.15).origin()["a.weight"]
    assert {2, 5, 11}.isdisjoint(set((places // 27).reshape(-1).tolist()))


@pytest.mark.parametrize(
    ("ratio", "options", "widths"),
    [
        (0.4, {}, (12, 20)),  # of 20 and 30: 12 and 18
        (0.3, {"round_to": 7}, (14, 21)),
        (0.3, {"round_to": 6}, (14, 24)),  # 20 are too few for a multiple of 6
        (0.3, {"round_to": 1}, (14, 21)),
        (0.05, {}, (20, 28)),  # 19 and 28
        (0.9, {}, (2, 3)),  # fewer than a block
    ],
)
def test_widths_are_rounded_to_what_kernels_like(
    ratio: float, options: dict[str, int], widths: tuple[int, int]
) -> None:
    rows = {row["layer"]: row["channels"] for row in edgekit.prune(model_of(), IMAGE, ratio=ratio, **options).table}
    assert (rows["a"][1], rows["b"][1]) == widths


def test_protected_layers_and_ratios_by_name() -> None:
    result = edgekit.prune(model_of(), IMAGE, ratio=0.4, protect=["a"], ratios={"b": 0.8})
    rows = {row["layer"]: row["channels"] for row in result.table}
    assert rows["a"] == (20, 20)
    assert rows["b"] == (30, 6)
    assert {"layer": "a", "reason": "you protect it"} in result.kept
    with pytest.raises(InputError, match="no layer is called that"):
        edgekit.prune(model_of(), IMAGE, protect=["nothing"])
    with pytest.raises(InputError, match="no layer is called that"):
        edgekit.prune(model_of(), IMAGE, ratios={"nothing": 0.5})


def test_a_model_left_whole_is_no_silent_success() -> None:
    console.clear_warnings()
    edgekit.prune(model_of(), IMAGE, ratio=0.0)
    assert console.warnings() == []
    edgekit.prune(model_of(), IMAGE, ratio=0.5, protect=["b"])  # its inputs are all that a makes
    (said,) = console.warnings()
    assert said.startswith("nothing was pruned: ")
    assert "you protect it (2 layers)" in said


@pytest.mark.parametrize("scope", ["local", "global"])
def test_goals_are_reached(scope: str) -> None:
    result = edgekit.prune(model_of(40), IMAGE, target_macs=0.5, scope=scope)
    assert 0.4 < result.macs[1] / result.macs[0] <= 0.5
    result = edgekit.prune(model_of(40), IMAGE, target_parameters=0.5, scope=scope)
    assert 0.4 < result.parameters[1] / result.parameters[0] <= 0.5


@pytest.mark.parametrize("goal", ["target_macs", "target_parameters"])
def test_sensitivity_takes_channels_where_the_outputs_bear_it(goal: str) -> None:
    model = model_of(32)
    with torch.no_grad():
        model.b.weight[:, 8:] *= 1e-4  # three quarters of what a makes is hardly heard
        model.a.weight[8:] *= 1e-4
    batches = [(torch.randn(8, 3, 16, 16), None)]
    equal = edgekit.prune(model, IMAGE, scope="local", calibration=batches, **{goal: 0.4})
    fitted = edgekit.prune(model, IMAGE, calibration=batches, **{goal: 0.4})  # the default towards a goal, given data
    before, after = getattr(fitted, goal.removeprefix("target_"))
    assert after <= 0.4 * before
    expected = model(IMAGE)
    assert (fitted.model(IMAGE) - expected).norm() < 0.5 * (equal.model(IMAGE) - expected).norm()


def test_sensitivity_keeps_what_the_goal_allows_and_the_users_own_ratios() -> None:
    model = model_of(32)
    with torch.no_grad():
        model.a.weight[1:] *= 1e-6  # cutting all but one of these is free, and goes far below the goal
        model.b.weight[:, 1:] *= 1e-6
    batches = [(torch.randn(8, 3, 16, 16), None)]
    result = edgekit.prune(model, IMAGE, calibration=batches, target_macs=0.8)
    assert 0.7 < result.macs[1] / result.macs[0] <= 0.8
    own = edgekit.prune(model, IMAGE, calibration=batches, target_macs=0.5, ratios={"a": 0.25})
    assert {r["layer"]: r["channels"] for r in own.table}["a"] == (32, 24)
    assert own.macs[1] <= 0.5 * own.macs[0]


def test_a_goal_out_of_reach_says_what_could_be() -> None:
    with pytest.raises(InputError, match=r"at least 0.0"):
        edgekit.prune(model_of(40), IMAGE, target_macs=0.0001)


def test_global_ranking_takes_the_weakest_anywhere() -> None:
    model = model_of()
    with torch.no_grad():
        model.a.weight *= torch.linspace(0.01, 3, 20).reshape(-1, 1, 1, 1)
        model.b.weight *= 1 / torch.linspace(0.01, 3, 20).reshape(1, -1, 1, 1)
    rows = {r["layer"]: r["channels"][1] for r in edgekit.prune(model, IMAGE, ratio=0.3, scope="global").table}
    assert rows["a"] + rows["b"] == 35
    assert rows["a"] >= 1
    assert rows["b"] >= 1


def test_iterations_reach_the_same_size() -> None:
    once = edgekit.prune(model_of(40), IMAGE, target_macs=0.5)
    thrice = edgekit.prune(model_of(40), IMAGE, target_macs=0.5, iterations=3)
    assert abs(once.macs[1] - thrice.macs[1]) < 0.1 * once.macs[0]
    assert thrice.macs[0] == once.macs[0]
    model = model_of(40)
    result = edgekit.prune(model, IMAGE, ratio=0.5, iterations=3)
    torch.testing.assert_close(result.model(IMAGE), zeroed(model, result)(IMAGE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["magnitude", "l2", "bn_scale", "lamp"])
def test_every_method_prunes(method: str) -> None:
    result = edgekit.prune(model_of(), IMAGE, ratio=0.3, method=method)
    assert result.macs[1] < 0.7 * result.macs[0]


def test_bn_scale_goes_by_the_scale() -> None:
    model = model_of()
    with torch.no_grad():
        model.bn.weight.copy_(torch.linspace(0.1, 2, 30))
    places = edgekit.prune(model, IMAGE, ratio=0.5, round_to=1, method="bn_scale").origin()["bn.weight"]
    assert places.tolist() == list(range(15, 30))


def test_taylor_goes_by_the_gradient() -> None:
    model = model_of()
    with torch.no_grad():
        model.head.weight[:, :10] = 0  # nothing downstream hears these
    batches = [(torch.randn(8, 3, 16, 16), torch.randint(0, 4, (8,)))]
    result = edgekit.prune(model, IMAGE, ratio=0.3, method="taylor", calibration=batches)
    assert result.origin()["bn.weight"].min() >= 9
    with pytest.raises(InputError, match="needs data"):
        edgekit.prune(model, IMAGE, method="taylor")


def test_a_pruner_of_the_users_own(tmp_path: Any) -> None:
    file = tmp_path / "first.py"
    file.write_text("import torch\n\ndef rank(group):\n    return torch.arange(len(group.members))\n")
    places = edgekit.prune(model_of(), IMAGE, ratio=0.5, round_to=1, method=str(file)).origin()["bn.weight"]
    assert places.tolist() == list(range(15, 30))
    with pytest.raises(InputError, match="did you mean 'magnitude'"):
        edgekit.prune(model_of(), IMAGE, method="magnitud")


def test_saved_loaded_pruned_again_and_trained(tmp_path: Any) -> None:
    result = edgekit.prune(model_of(), IMAGE, ratio=0.3)
    loaded = edgekit.load(result.save(tmp_path / "m.pt2"))
    torch.testing.assert_close(loaded(IMAGE), result.model(IMAGE))
    again = edgekit.prune(loaded, IMAGE, ratio=0.3)
    assert again.macs[0] == result.macs[1]
    assert again.macs[1] < 0.7 * again.macs[0]
    optimizer = torch.optim.SGD(again.model.train().parameters(), 0.05)
    goal = torch.randn(2, 4)
    losses = []
    for _ in range(20):
        loss = (again.model(IMAGE) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


# ── sparsity without smaller shapes ──────────────────────────────────────────────────────


@pytest.mark.parametrize("scope", ["local", "global"])
def test_unstructured_sparsity_is_kept_by_training_and_saving(scope: str, tmp_path: Any) -> None:
    model = model_of()
    result = edgekit.prune(model, IMAGE, ratio=0.5, method="unstructured", scope=scope)
    assert "50%" in result.notes[0]
    assert "run as long as before" in result.notes[0]
    loaded = edgekit.load(result.save(tmp_path / "m.pt2"))
    zeros = loaded.state_dict()["b.weight"] == 0
    assert 0.2 < zeros.float().mean() < 0.8
    optimizer = torch.optim.SGD(loaded.train().parameters(), 0.1)
    loaded(IMAGE).square().sum().backward()
    optimizer.step()
    assert torch.equal(loaded.state_dict()["b.weight"] == 0, zeros)
    for name in ("a", "b", "head"):
        weight = model.get_submodule(name).weight
        small = weight.detach().abs() * (result.model.state_dict()[f"{name}.weight"] == 0)
        big = weight.detach().abs()[result.model.state_dict()[f"{name}.weight"] != 0]
        assert scope == "global" or small.max() <= big.min()


def test_two_of_four_weights_stay() -> None:
    result = edgekit.prune(model_of(), IMAGE, method="nm")
    weight = result.model.state_dict()["b.weight"].movedim(1, -1).reshape(-1, 4)
    assert ((weight != 0).sum(1) == 2).all()
    kept, gone = (weight.abs().topk(2, 1).values.min(1).values, (weight == 0).sum())
    assert kept.min() > 0
    assert gone == weight.numel() // 2
    assert (result.model.state_dict()["a.weight"] != 0).all()  # three inputs do not divide by four
    assert "TensorRT" in result.notes[0]
