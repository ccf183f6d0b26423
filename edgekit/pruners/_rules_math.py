"""Coupling rules of arithmetic: element by element, contractions, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from edgekit.pruners._coupling import Analysis, Value, describe, rule

Letters = str | Sequence[Any]


def bound(node: Node) -> dict[str, Any]:
    """The arguments of a call by their names in the operation's schema, defaults filled in."""
    found = dict(node.kwargs)
    for i, argument in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            found[argument.name] = node.args[i]
        else:
            found.setdefault(argument.name, argument.default_value)
    return found


def aligned(value: Value, dim: int, rank: int) -> Tensor | None:
    """The ids along ``dim`` (counted in the result) with leading dimensions added up to ``rank``."""
    ids = value.layers.get(dim - (rank - value.rank))
    return None if ids is None else ids.reshape((1,) * (rank - ids.dim()) + tuple(ids.shape))


def elementwise(state: Analysis, node: Node, values: Sequence[Value]) -> Value:
    """Tie what meets at the same element."""
    shape = state.shapes[node]
    rank, layers = len(shape), {}
    for d, size in enumerate(shape):
        if size == 1:
            continue
        meet = [v for v in values if d >= rank - v.rank and v.shape[d - (rank - v.rank)] == size]
        ids = [aligned(v, d, rank) for v in meet]
        known = [i for i in ids if i is not None]
        if not known:
            continue
        if len(known) < len(ids):
            for some in known:
                state.ids.freeze(some, f"{describe(node)} joins it to something that stays whole")
            continue
        layers[d] = min(known, key=lambda i: i.numel())
        for other in known:
            state.ids.tie(layers[d], other, describe(node))
    return Value(shape, layers)


# Element by element too, though torch does not tag them so.
UNTAGGED = (
    "complex.default polar.default real.default imag.default "
    "relu6_.default hardswish.default hardswish_.default mish_.default log_sigmoid.default where.ScalarOther"
    " where.ScalarSelf where.Scalar masked_fill.Tensor masked_fill_.Scalar masked_fill_.Tensor floor_divide.default"
    " floor_divide.Scalar floor_divide_.Tensor true_divide.Scalar true_divide.Tensor rsub.Tensor rsub.Scalar"
    " __and__.Tensor __and__.Scalar __or__.Tensor __or__.Scalar abs_.default multiply.Tensor multiply.Scalar"
    " multiply_.Tensor divide.Tensor divide.Scalar subtract.Tensor subtract.Scalar greater.Tensor greater.Scalar"
    " less.Tensor less.Scalar not_equal.Tensor isclose.default special_expit.default fill_.Tensor fill.Tensor"
)


@rule("pointwise", *(f"aten.{name}" for name in UNTAGGED.split()))
def pointwise(state: Analysis, node: Node) -> Any:
    """Any operation that torch tags as element by element."""
    found: list[Node] = [a for a in node.all_input_nodes if isinstance(state.values.get(a), Value)]
    if isinstance(state.shapes[node], list):
        state.freeze(node, node.args)
        return [Value(s) for s in state.shapes[node]]
    return elementwise(state, node, [state.values[a] for a in found])


IDENTITIES = (
    "clone contiguous detach alias lift_fresh_copy _to_copy to.dtype to.dtype_layout to.device to.other to.prim_Device"
    " type_as dropout dropout_ feature_dropout feature_dropout_ alpha_dropout feature_alpha_dropout fill_.Scalar zero_"
    " fill.Scalar rrelu bernoulli conj resolve_conj resolve_neg"
    " requires_grad_ _assert_tensor_metadata lift_fresh detach_"
)


@rule(*(f"aten.{n}" if "." in n else f"aten.{n}.default" for n in IDENTITIES.split()))
def identity(state: Analysis, node: Node) -> Any:
    """The first argument's elements, in their places."""
    value = state.value(node.args[0])
    return Value(state.shapes[node], dict(value.layers)) if state.shapes[node] == value.shape else Value(value.shape)


def contract(state: Analysis, node: Node, operands: Sequence[tuple[Value, Letters]], out: Letters) -> Value:
    """A product summed over the letters that ``out`` lacks (Einstein's notation): equal letters go together."""
    space = list(dict.fromkeys(letter for _, letters in operands for letter in letters))
    found: dict[Any, Tensor] = {}
    for letter in space:
        sizes = [v.shape[list(ls).index(letter)] for v, ls in operands if letter in ls]
        meet = [(v, ls) for v, ls in operands if letter in ls and v.shape[list(ls).index(letter)] == max(sizes)]
        if max(sizes) == 1:
            continue
        ids = [_placed(v.layers.get(list(ls).index(letter)), ls, space) for v, ls in meet]
        known = [i for i in ids if i is not None]
        if len(known) < len(ids):
            for some in known:
                state.ids.freeze(some, f"{describe(node)} joins it to something that stays whole")
            continue
        found[letter] = min(known, key=lambda i: i.numel())
        for other in known:
            state.ids.tie(found[letter], other, describe(node))
    layers = {}
    for d, letter in enumerate(out):
        if letter in found:
            layers[d] = _without(state, node, found[letter], space, out)
    return state.like(node, layers)


def _placed(ids: Tensor | None, letters: Letters, space: list[Any]) -> Tensor | None:
    """Ids over an operand's letters as ids over all letters."""
    if ids is None:
        return None
    order = sorted(range(len(letters)), key=lambda i: space.index(letters[i]))
    sizes = dict(zip(letters, ids.shape, strict=True))
    return ids.permute(order).reshape([sizes.get(letter, 1) for letter in space])


def _without(state: Analysis, node: Node, ids: Tensor, space: list[Any], out: Letters) -> Tensor:
    """Ids over all letters as ids over the result's; what varied over a summed letter is tied along it."""
    for i, letter in enumerate(space):
        if letter not in out and ids.shape[i] > 1:
            ids = state.ids.tie_along(ids, i, describe(node))
    sizes = dict(zip(space, ids.shape, strict=True))
    inside = [letter for letter in space if letter in out]
    kept = ids.reshape([sizes[letter] for letter in inside])
    return kept.permute([inside.index(letter) for letter in out])


@rule("aten.linear.default")
def linear(state: Analysis, node: Node) -> Value:
    """``x (…, in) · weight (out, in) + bias (out)``."""
    x, weight, *bias = (state.value(a) for a in node.args[:3])
    lead = list(range(x.rank - 1))
    operands: list[tuple[Value, Letters]] = [(x, [*lead, "i"]), (weight, ["o", "i"])]
    if bias and bias[0].rank:
        operands.append((bias[0], ["o"]))
    return contract(state, node, operands, [*lead, "o"])


@rule("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.dot.default")
def matmul(state: Analysis, node: Node) -> Value:
    """Matrix products, with broadcast leading dimensions."""
    a, b = state.value(node.args[0]), state.value(node.args[1])
    return contract(state, node, *_product(a, b))


def _product(a: Value, b: Value) -> tuple[list[tuple[Value, Letters]], list[Any]]:
    lead = [f"b{i}" for i in range(max(a.rank, b.rank) - 2)]
    letters_a = [*(lead[len(lead) - (a.rank - 2) :] if a.rank > 1 else []), *(["m"] if a.rank > 1 else []), "k"]
    letters_b = [*(lead[len(lead) - (b.rank - 2) :] if b.rank > 1 else []), "k", *(["n"] if b.rank > 1 else [])]
    out = [*lead, *(["m"] if a.rank > 1 else []), *(["n"] if b.rank > 1 else [])]
    return [(a, letters_a), (b, letters_b)], out


@rule("aten.addmm.default", "aten.baddbmm.default", "aten.addbmm.default", "aten.addmv.default")
def addmm(state: Analysis, node: Node) -> Value:
    """``bias + a · b``."""
    bias, a, b = (state.value(n) for n in node.args[:3])
    operands, out = _product(a, b)
    return contract(state, node, [*operands, (bias, out[len(out) - bias.rank :])], out)


@rule("aten.bilinear.default")
def bilinear(state: Analysis, node: Node) -> Value:
    """``a (…, i) · weight (o, i, j) · b (…, j) + bias (o)``."""
    a, b, weight, *bias = (state.value(n) for n in node.args[:4])
    lead = list(range(a.rank - 1))
    operands: list[tuple[Value, Letters]] = [(a, [*lead, "i"]), (b, [*lead, "j"]), (weight, ["o", "i", "j"])]
    if bias and bias[0].rank:
        operands.append((bias[0], ["o"]))
    return contract(state, node, operands, [*lead, "o"])


@rule("aten.cosine_similarity.default")
def cosine(state: Analysis, node: Node) -> Value:
    """A product and two norms summed over one dimension: over channels, those that stay."""
    a, b = state.value(node.args[0]), state.value(node.args[1])
    if a.rank != b.rank:
        state.freeze(node, node.args)
        return Value(state.shapes[node])
    letters, d = list(range(a.rank)), bound(node)["dim"] % a.rank
    return contract(state, node, [(a, letters), (b, letters)], [i for i in letters if i != d])


@rule("aten.einsum.default")
def einsum(state: Analysis, node: Node) -> Any:
    """Einstein's notation itself."""
    equation, operands = node.args[0].replace(" ", ""), node.args[1]
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not arrow or any(len(set(t)) < len(t) for t in terms):
        state.freeze(node, node.args, why=f"{describe(node)} is written as {equation!r}, for which there is no rule")
        return Value(state.shapes[node])
    return contract(state, node, [(state.value(o), t) for o, t in zip(operands, terms, strict=True)], right)


SUMS = "sum.default sum.dim_IntList mean.default mean.dim var.correction var.dim std.correction std.dim var.default"
NORMS = "std.default norm.ScalarOpt_dim linalg_vector_norm.default norm.Scalar"
PEAKS = "amax.default amin.default max.default min.default prod.dim_int any.dim all.dim logsumexp.default"


@rule(*(f"aten.{n}" for n in f"{SUMS} {NORMS} {PEAKS}".split()))
def reduce(state: Analysis, node: Node) -> Value:
    """Sums and statistics over some dimensions: over channels, they are those of the channels that stay."""
    x, named = state.value(node.args[0]), bound(node)
    dims = named.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.rank))
    over = {d % x.rank for d in dims}
    if str(node.target)[5:] in PEAKS.split():
        x = state.still(node, x, over, "takes an extreme over channels")
    layers, place = {}, 0
    for d in range(x.rank):
        if d in over:
            place += bool(named.get("keepdim", False))
            continue
        if (ids := x.layers.get(d)) is not None:
            for o in over:
                if ids.shape[o] > 1:
                    ids = state.ids.tie_along(ids, o, describe(node))
            keep = [n for i, n in enumerate(ids.shape) if i not in over or named.get("keepdim", False)]
            layers[place] = ids.reshape(keep)
        place += 1
    return state.like(node, layers)


@rule("aten.softmax.int", "aten._softmax.default", "aten.log_softmax.int", "aten._log_softmax.default")
@rule("aten.cumsum.default", "aten.cumprod.default")
def along(state: Analysis, node: Node) -> Value:
    """Operations that mix all elements along one dimension, so none of it can go."""
    return state.still(node, state.value(node.args[0]), [node.args[1]], "mixes all channels")


@rule(
    "aten.topk.default", "aten.sort.default", "aten.sort.stable", "aten.max.dim", "aten.min.dim", "aten.argmax.default"
)
@rule("aten.argmin.default", "aten.argsort.default", "aten.kthvalue.default", "aten.median.dim")
def order(state: Analysis, node: Node) -> Any:
    """Choosing by value along one dimension, of which nothing goes; along all where none is named."""
    x, d, shape = state.value(node.args[0]), bound(node)["dim"], state.shapes[node]
    dims = range(x.rank) if d is None else [d % x.rank]
    x = state.still(node, x, dims, "orders its elements")
    first = shape[0] if isinstance(shape, list) else shape
    there = [i for i in range(x.rank) if len(first) == x.rank or i not in dims]
    layers = {there.index(k): ids.reshape([ids.shape[i] for i in there]) for k, ids in x.layers.items()}
    return [Value(s, dict(layers)) for s in shape] if isinstance(shape, list) else Value(shape, layers)


FOURIER = "fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn"


@rule(*(f"aten.fft_{n}.default" for n in FOURIER.split()))
def fourier(state: Analysis, node: Node) -> Value:
    """Fourier transforms along some dimensions: those stay, the others pass."""
    x, dims = state.value(node.args[0]), bound(node)["dim"]
    dims = [dims] if isinstance(dims, int) else range(x.rank) if dims is None else dims
    return Value(state.shapes[node], state.still(node, x, dims, "transforms it").layers)


@rule("aten.view_as_real.default", "aten.view_as_complex.default")
def complex_view(state: Analysis, node: Node) -> Value:
    """Real and imaginary parts as a last dimension of two, or back."""
    x = state.value(node.args[0])
    if "real" in str(node.target):
        return Value(state.shapes[node], {d: ids.unsqueeze(-1) for d, ids in x.layers.items()})
    x = state.still(node, x, [-1], "takes it as real and imaginary part")
    return Value(state.shapes[node], {d: ids.squeeze(-1) for d, ids in x.layers.items()})
