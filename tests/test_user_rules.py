"""What a user's rule, hook or vocabulary entry gives is looked at: no relevance is split, broadcast or lost unsaid.

Guards against a rule's mistake that goes on as a heatmap, or ends in an error of PyTorch's in generated code.
"""

from __future__ import annotations

import functools

import pytest
import torch
import torch.utils._pytree as pytree
import zennit.rules as zr
from reference import compile_is_broken
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.core import BasicHook, Hook, stabilize
from zennit.layer import Sum
from zennit.types import Linear

import fxlrp
from fxlrp import errors, ops, rules, vocabulary
from fxlrp.relevance.step import Step
from fxlrp.rules import table
from fxlrp.testing import trained

aten = torch.ops.aten
X = torch.randn(2, 3, dtype=torch.float64)


class Model(nn.Module):
    """An op in front of a linear layer."""

    def __init__(self, op, features=3):
        super().__init__()
        self.op, self.head = op, nn.Linear(features, 2).double()

    def forward(self, x):
        return self.head(self.op(x))


@pytest.fixture
def registered():
    """Registers an entry, and takes it out again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_OPS", dict(ops._OPS))
        patch.setattr(table, "_POLICIES", dict(table._POLICIES))
        yield functools.partial(vocabulary.register, replace=True)


class Gives(rules.Rule):
    """A rule of the user's that returns what a function makes of the right answer."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def propagate(self, call, output, relevance):
        return self.change([relevance.clone() for _ in call.inputs])


WRONG = {
    "a tensor": (lambda found: found[0], "gave a Tensor"),
    "a stack": (torch.stack, "gave a Tensor"),
    "a number": (lambda found: 1.0, "gave a float"),
    "nothing": (lambda found: None, "gave a NoneType"),
    "a generator": (lambda found: (part for part in found), "gave a generator"),
    "fewer": (lambda found: found[:-1], "gave relevance for"),
    "more": (lambda found: [*found, found[0]], "gave relevance for"),
    "a scalar": (lambda found: [part.sum() for part in found], r"shape \(\) for an input of shape \(2, 3\)"),
    "a broadcast": (lambda found: [part[:1] for part in found], r"shape \(1, 3\) for an input of shape \(2, 3\)"),
    "numbers": (lambda found: [1.0 for _ in found], "gave a float for an input"),
    "integers": (lambda found: [part.long() for part in found], "torch.int64 for an input of torch.float64"),
    "half": (lambda found: [part.half() for part in found], "torch.float16 for an input of torch.float64"),
}


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_rule_of_the_users_gives_relevance_of_each_input(wrong, two):
    change, message = WRONG[wrong]
    rule, slots = Gives(change), [(0, None), (1, None)][: 1 + two]
    step = Step(rule, rules.Site(vocabulary.Op(inputs=(0, 1)), aten.xlogy.Tensor, tuple(slots), "here"))
    with pytest.raises(errors.RuleError, match=rf"Gives\(\) cannot be the rule of here: .*{message}"):
        step(X, None, X.abs(), X.abs())


def test_the_error_names_the_op_and_its_place(registered):
    registered(aten.xlogy.Tensor, inputs=(0, 1), default=lambda node, slots: Gives(torch.stack))
    with pytest.raises(errors.RuleError, match=r"aten\.xlogy\.Tensor in the model's .*test_user_rules"):
        fxlrp.convert(Model(lambda x: torch.xlogy(x, 2 * x)), "epsilon_plus")(X.abs(), 1)


def test_a_rule_without_propagate(registered):
    registered(aten.digamma.default, default=lambda node, slots: rules.Rule())
    with pytest.raises(errors.RuleError, match=r"cannot be the rule of aten\.digamma.*: it has no method 'propagate'"):
        fxlrp.convert(Model(torch.digamma), None)(X.abs(), 1)


@pytest.mark.parametrize("trainable", [False, True])
def test_it_is_looked_at_in_every_way_that_it_runs(trainable, registered):
    registered(aten.digamma.default, default=lambda node, slots: Gives(lambda found: [found[0][..., :1]]))
    twin = fxlrp.convert(Model(torch.digamma), "epsilon_plus", trainable=trainable)
    for target in (None, torch.randn(4, 2, 2, dtype=torch.float64)):
        with pytest.raises(errors.RuleError, match=r"shape \(2, 1\) for an input of shape \(2, 3\)"):
            twin(X.abs(), target)


@compile_is_broken
@pytest.mark.parametrize("trainable", [False, True])
def test_it_is_looked_at_in_compiled_code(trainable, registered):
    registered(aten.digamma.default, default=lambda node, slots: Gives(lambda found: [found[0][..., :1]]))
    twin = fxlrp.convert(Model(torch.digamma), "epsilon_plus", trainable=trainable)
    with pytest.raises(errors.RuleError, match="for an input"):
        torch.compile(twin, backend="eager")(X.abs())


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_rule_that_is_right_goes_through(kind, registered):
    registered(aten.digamma.default, default=lambda node, slots: Gives(kind))
    model = Model(torch.digamma)
    found = fxlrp.convert(model, None)(X.abs(), 1).relevance
    registered(aten.digamma.default, default=lambda node, slots: rules.Pass())
    torch.testing.assert_close(found, fxlrp.convert(model, None)(X.abs(), 1).relevance)


def hook(**fields):
    return BasicHook(**fields)


same = [lambda x: x]
BASIC = {
    "a reducer that gives a number": (
        hook(reducer=lambda inputs, gradients: (inputs[0] * gradients[0]).sum()),
        r"shape \(\) for an input",
    ),
    "a reducer that gives a list": (hook(reducer=lambda inputs, gradients: [inputs[0]]), "gave a list for an input"),
    "a reducer that drops a dimension": (
        hook(reducer=lambda inputs, gradients: gradients[0].sum(1)),
        r"shape \(2,\) for an input",
    ),
    "a mapper of too many": (hook(gradient_mapper=lambda r, outputs: [r, r]), "gave 2 tensors for 1 branches"),
    "a mapper of too few": (
        hook(
            input_modifiers=2 * same,
            param_modifiers=[zr.NoMod(), zr.ClampMod(min=0.0)],
            output_modifiers=2 * same,
            gradient_mapper=lambda r, outputs: r,
            reducer=lambda inputs, gradients: gradients[0] + gradients[1],
        ),
        "gave 1 tensors for 2 branches",
    ),
    "a mapper of nothing": (hook(gradient_mapper=lambda r, outputs: None), "gave 0 tensors for 1 branches"),
    "a mapper of another shape": (hook(gradient_mapper=lambda r, outputs: r[:1]), r"\(1, 2\), where \(2, 2\) is due"),
    "a mapper of a number": (hook(gradient_mapper=lambda r, outputs: [1.0]), r"gave a float"),
    "a parameter of another shape": (
        hook(param_modifiers=[zr.ParamMod(lambda param, name: param[:1])]),
        r"made of the weight a tensor of shape \(1, 3\), where \(2, 3\) is due",
    ),
    "a parameter that is none": (hook(param_modifiers=[zr.ParamMod(lambda param, name: None)]), "weight a NoneType"),
    "an input of another shape": (
        hook(input_modifiers=[lambda x: x[:1]]),
        r"input modifier gave a tensor of shape \(1",
    ),
    "an output of another shape": (hook(output_modifiers=[lambda z: z[:1]]), r"output modifier gave a tensor of shape"),
    "unequal numbers of modifiers": (
        hook(input_modifiers=2 * same, param_modifiers=[zr.NoMod()], output_modifiers=same),
        "2 input modifiers, 1 param modifiers and 1 output modifiers",
    ),
}


@pytest.mark.parametrize("name", BASIC)
def test_the_parts_of_a_basic_hook_keep_numbers_and_shapes(name):
    rule, message = BASIC[name]
    model = nn.Sequential(nn.Linear(3, 2)).double()
    composite = LayerMapComposite([(nn.Linear, rule)])
    with pytest.raises(errors.RuleError, match=message) as caught:
        fxlrp.convert(model, composite)(X, 1)
    assert "BasicHook" in str(caught.value)
    assert "aten.linear.default in module '0'" in str(caught.value)


class Backward(Hook):
    """A hook whose `backward` returns what it was made with."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, module, inputs, output):
        pass

    def backward(self, module, grad_input, grad_output):
        return self.change(grad_input[0])

    def copy(self):
        return type(self)(self.change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gradient: 2.0, "gave a float for an input"),
        (lambda gradient: gradient.sum(), r"shape \(\) for an input"),
        (lambda gradient: (gradient, gradient), "gave relevance for 2 inputs"),
        (lambda gradient: (), "gave relevance for 0 inputs"),
        (lambda gradient: (None,), "gave a NoneType for an input"),
    ],
)
def test_what_a_hooks_backward_returns_fits(change, message):
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).double()
    with pytest.raises(errors.RuleError, match=message) as caught:
        fxlrp.convert(model, LayerMapComposite([(nn.ReLU, Backward(change))]))(X, 1)
    assert "Backward() cannot be the rule of aten.relu.default in module '1'" in str(caught.value)


def of_this_layer(function):
    """The same, but it refuses numbers that fxlrp may try it on, and that are not its layer's."""

    def limited(*args):
        for value in pytree.tree_leaves(args):
            if isinstance(value, torch.Tensor) and (value.abs().max() > 1e3 or value.shape in ((64,), (1,))):
                raise ValueError("not of this layer")
        return function(*args)

    return limited


PARTS = {
    "positive input": lambda x: x.clamp(min=0),
    "negative input": lambda x: x.clamp(max=0),
    "large weight": lambda param, name: param.clamp(min=-0.1),
    "negative weight": lambda param, name: param.clamp(max=0) * (name != "bias"),
    "output": lambda output: output,
    "mapper": lambda r, outputs: [r / stabilize(outputs[0] + outputs[1], 1e-3)] * 2,
    "reducer": lambda inputs, gradients: inputs[0] * gradients[0] + inputs[1] * gradients[1],
}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_a_rule_whose_parts_refuse_other_numbers_is_right_all_the_same(part, trainable):
    body = [nn.Unflatten(1, (3, 1)), nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten()]
    model = trained(nn.Sequential(*body, nn.Linear(4, 2))).eval()
    found = []
    for parts in (PARTS, {**PARTS, part: of_this_layer(PARTS[part])}):
        positive, negative, up, down, output, mapper, reducer = parts.values()
        rule = BasicHook([positive, negative], [up, down], [output] * 2, mapper, reducer)
        twin = fxlrp.convert(model, LayerMapComposite([(Linear, rule), (nn.ReLU, zr.Pass())]), trainable=trainable)
        found.append(twin(X, 1).relevance)
        assert fxlrp.audit(twin, X, 1).leak < 1e-12
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


class Counts(Hook):
    """A hook that looks at how many inputs its module has."""

    def backward(self, module, grad_input, grad_output):
        return tuple(len(grad_input) * gradient for gradient in grad_input)


def test_a_hooks_backward_may_count_its_inputs():
    model = Model(lambda x: x + x.flip(1))
    found = [
        fxlrp.convert(model, LayerMapComposite([(Sum, rule)]))(X, 1).relevance
        for rule in (Counts(), Backward(lambda gradient: (2 * gradient, 2 * gradient)))
    ]
    torch.testing.assert_close(*found)


def test_a_hooks_backward_may_return_a_tensor():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).double()
    found = [
        fxlrp.convert(model, LayerMapComposite([(nn.ReLU, Backward(change))]))(X, 1).relevance
        for change in (lambda g: 3 * g, lambda g: (3 * g,))
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("op", [aten.xlogy.Tensor, aten.hypot.default])
def test_pass_is_for_one_input(op, registered):
    registered(op, inputs=(0, 1), default=lambda node, slots: rules.Pass())
    with pytest.raises(errors.RuleError, match=r"Pass cannot be the rule of aten\.\w+.* needs one input"):
        fxlrp.convert(Model(lambda x: op(x, 2 * x)))(X.abs(), 1)
    # Of one that is a constant, it may be the rule.
    assert fxlrp.convert(Model(lambda x: op(x, torch.ones_like(x))))(X.abs(), 1).relevance.any()


def test_pass_does_not_change_a_shape(registered):
    registered(aten.logsumexp.default, default=lambda node, slots: rules.Pass())
    with pytest.raises(errors.RuleError, match=r"Pass cannot be the rule of aten\.logsumexp"):
        fxlrp.convert(Model(lambda x: torch.logsumexp(x, 1, keepdim=True), 1))(X, 0)
    with pytest.raises(errors.RuleError, match="needs one input"):
        fxlrp.convert(Model(lambda x: x + x.flip(1)), LayerMapComposite([(Sum, zr.Pass())]))(X, 0)


@pytest.mark.parametrize("default", [lambda n, s: rules.Pass, lambda n, s: zr.Epsilon(), lambda n, s: "pass"])
def test_a_default_gives_a_rule(default, registered):
    registered(aten.digamma.default, default=default)
    with pytest.raises(errors.RuleError, match=r"default for aten\.digamma\.default .* gives") as caught:
        fxlrp.convert(Model(torch.digamma), "epsilon_plus")(X.abs(), 1)
    assert "fxlrp.rules.Rule" in str(caught.value)


def test_a_default_may_give_one_rule_to_several_ops(registered):
    """Of linear maps without a bias, LRP-0 is gradient x input."""
    rule = rules.BasicRule(zr.Norm(stabilizer=1e-14))
    for op in (aten.cumsum.default, aten.mean.dim):
        registered(op, default=lambda node, slots: rule, linear=True)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    model = Model(lambda x: x.cumsum(1).mean(2))
    nn.init.zeros_(model.head.bias)
    composite = LayerMapComposite([(nn.Linear, zr.Epsilon(epsilon=1e-14))])
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    for _ in range(2):
        torch.testing.assert_close(fxlrp.explain(model, x.detach(), 1, composite).relevance, x.detach() * gradient)


@torch.library.custom_op("fxlrp_tests::halves", mutates_args=())
def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x / 2, x / 2


@halves.register_fake
def _(x):
    return torch.empty_like(x), torch.empty_like(x)


@pytest.mark.parametrize("use", [lambda a, b: a + b, lambda a, b: b])
def test_a_second_output_that_no_rule_takes_is_an_error(use, registered):
    registered(torch.ops.fxlrp_tests.halves.default, default=lambda node, slots: rules.Pass())
    of = lambda use: fxlrp.convert(Model(lambda x: use(*torch.ops.fxlrp_tests.halves(x))), record=("head",))(X, 0)
    with pytest.raises(errors.RuleError, match=r"output 1 of fxlrp_tests\.halves\.default"):
        of(use)
    first = of(lambda a, b: a)
    torch.testing.assert_close(first.relevance, first.recorded["head"])
