"""What every registered network must do. A new network is in the list by being registered."""

import copy
import pickle

import pytest
import timm
import timm.optim
import torch
from torch import nn

import dicenet
from dicenet.models.registry import FAMILIES, ROWS

NETWORKS = list(ROWS)
SMALLEST = [min(family.NETWORKS, key=lambda row: row.macs).name for family in FAMILIES]
#: DiCENets, and the smallest of each body and unit of the other families: the rest has the same parts, only wider.
QUICK = {
    *(row.name for row in dicenet.models.dicenet.NETWORKS),
    "mobilenet_sep_041",
    "mobilenet_dice_029",
    "mobilenet_figure4_sep_041",
    "mobilenet_figure4_dice_029",
    "espnetv2_050",
    "resnet_sep_059",
    "resnet_dice_052",
    "shufflenetv2_sep_041",
}


def others_slow(names):
    """All networks, those that are not among ``names`` only in the slow run."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]


every = pytest.mark.parametrize("name", others_slow(QUICK))
smallest = pytest.mark.parametrize("name", others_slow(SMALLEST))


def network(name, img_size=64, **arguments):
    torch.manual_seed(0)
    net = timm.create_model(name, img_size=img_size, **{"num_classes": 7, **arguments})
    return unsettle(net)


def unsettle(net):
    """Norms and slopes away from their start, so that a mix-up shows."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def picture(*size, channels=3, count=2):
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


@every
def test_forward_at_default_size(name):
    net = timm.create_model(name).eval()
    with torch.no_grad():
        logits = net(picture(224, 224, count=1))
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()
    assert logits.std() > 0


@every
def test_backward_reaches_every_parameter(name):
    net = network(name).train()
    net(picture(64, 64)).square().mean().backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@every
@pytest.mark.parametrize("size", [(65, 97), (32, 64), (33, 65)])
def test_odd_and_oblong_sizes(name, size):
    built_for = network(name, size).eval()
    scaled = network(name, (64, 96)).eval()
    with torch.no_grad():
        for net in (built_for, scaled):
            last = net.forward_features(picture(*size))
            assert last.shape[2:] == tuple(-(-side // 32) for side in size)
            assert net(picture(*size)).isfinite().all()
    assert built_for.trained_size == size


@every
@pytest.mark.parametrize("channels", [1, 4, 70])
def test_other_channels(name, channels):
    net = network(name, in_chans=channels).eval()
    assert net(picture(64, 64, channels=channels)).shape == (2, 7)


@every
def test_names_of_the_configuration_are_real(name):
    net = timm.create_model(name)
    cfg = net.default_cfg
    assert net.get_submodule(cfg["classifier"]) is net.get_classifier()
    names = cfg["first_conv"]
    for convolution in (names,) if isinstance(names, str) else names:
        assert net.get_submodule(convolution).in_channels == 3
    assert cfg["input_size"] == (3, *net.trained_size)
    assert cfg["num_classes"] == 1000
    last = net.eval().forward_features(picture(*cfg["input_size"][1:], count=1))
    assert last.shape == (1, net.num_features, *cfg["pool_size"])


@every
def test_classifier_can_be_replaced_and_removed(name):
    net = network(name).eval()
    x = picture(64, 64)
    assert net.forward_head(net.forward_features(x), pre_logits=True).shape == (2, net.head_hidden_size)
    net.reset_classifier(3)
    assert (net(x).shape, net.num_classes) == ((2, 3), 3)
    net.reset_classifier(0)
    assert net(x).shape == (2, net.head_hidden_size)
    net.reset_classifier(0, "")
    assert net(x).shape == (2, net.head_hidden_size, 2, 2)
    assert timm.create_model(name, num_classes=0).eval()(x).shape == (2, net.head_hidden_size)


@every
def test_pyramid(name):
    net = network(name, features_only=True).eval()
    maps = net(picture(64, 96))
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    assert [(64 // m.shape[2], 96 // m.shape[3]) for m in maps] == [(r, r) for r in net.feature_info.reduction()]
    assert net.feature_info.reduction() == [2, 4, 8, 16, 32]
    two = network(name, features_only=True, out_indices=(2, 3)).eval()
    for actual, expected in zip(two(picture(64, 96)), maps[2:4], strict=True):
        torch.testing.assert_close(actual, expected)
    assert sum(p.numel() for p in two.parameters()) < sum(p.numel() for p in net.parameters())


@every
def test_intermediates(name):
    net = network(name).eval()
    x = picture(64, 64)
    last, maps = net.forward_intermediates(x)
    torch.testing.assert_close(last, net.forward_features(x))
    torch.testing.assert_close(maps[-1], last)
    only = net.forward_intermediates(x, indices=[1, 3], intermediates_only=True, stop_early=True)
    torch.testing.assert_close(only, [maps[1], maps[3]])
    assert net.prune_intermediate_layers(indices=[1, 2]) == [1, 2]
    torch.testing.assert_close(net.forward_intermediates(x, [2], intermediates_only=True), [maps[2]])


def maps_of_kernels(net):
    """What each DimConv is made for, in order."""
    return [module.feature_size for module in net.modules() if isinstance(module, dicenet.DimConv)]


def maps_that_come(net, x):
    """What each DimConv really gets."""
    found = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: found.append(tuple(args[0].shape[2:])))
        for module in net.modules()
        if isinstance(module, dicenet.DimConv)
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return found


@every
def test_small_stem(name):
    net = network(name, 32, stem="small").eval()
    last, maps = net.forward_intermediates(picture(32, 32))
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4]
    assert [info["reduction"] for info in net.feature_info] == [1, 2, 4, 8]
    # built for the maps that really come: nothing is scaled silently
    assert maps_of_kernels(net) == maps_that_come(net, picture(32, 32))
    assert net.forward_head(last).shape == (2, 7)
    features = network(name, 32, stem="small", features_only=True)
    assert features.feature_info.reduction() == [1, 2, 4, 8]


@every
def test_two_sizes(name):
    net = network(name, 64).eval()
    x = picture(96, 64)
    with torch.no_grad():
        before = net(x)
        net.set_input_size((96, 64))
        assert (net.trained_size, net.input_size) == ((64, 64), (96, 64))
        torch.testing.assert_close(net(x), before)  # only the size of data has changed
        net.rebase((96, 64))
        assert (net.trained_size, net.input_size) == ((96, 64), (96, 64))
        assert net(x).isfinite().all()
    assert maps_of_kernels(net) == maps_that_come(net, x)
    for call in (net.set_input_size, net.rebase):
        with pytest.raises(dicenet.ConfigError, match="at least 32 on both sides, got 31x64"):
            call((31, 64))


@every
def test_save_and_load(name, tmp_path):
    net = network(name, (64, 96), in_chans=1, stem="small", drop_rate=0.3).eval()
    names = [f"class {n}" for n in range(7)]
    net.set_input_size(64)
    dicenet.save(net, tmp_path / "net.safetensors", names)
    other = dicenet.load(tmp_path / "net.safetensors").eval()
    x = picture(64, 64, channels=1)
    torch.testing.assert_close(other(x), net(x), rtol=0, atol=0)
    assert (other.trained_size, other.input_size, other.drop_rate) == ((64, 96), (64, 64), 0.3)
    assert other.pretrained_cfg["label_names"] == tuple(names)


@smallest
@pytest.mark.parametrize("pool", ["", "max", "avgmax", "catavgmax"])
def test_poolings(name, pool, tmp_path):
    net = network(name, global_pool=pool).eval()
    x = picture(64, 64)
    assert net(x).shape == ((2, 7) if pool else (2, 7, 2, 2))
    dicenet.save(net, tmp_path / "net.safetensors")
    torch.testing.assert_close(dicenet.load(tmp_path / "net.safetensors").eval()(x), net(x), rtol=0, atol=0)
    for other in ("avg", "catavgmax", ""):
        net.reset_classifier(3, other)
        assert net(x).shape == ((2, 3) if other else (2, 3, 2, 2))
    with pytest.raises(dicenet.ConfigError, match="global_pool 'middle'"):
        network(name, global_pool="middle")


@pytest.mark.parametrize("img_size", [64.0, (64,), (64, 64, 3), (64.5, 64), "64"])
def test_impossible_sizes(img_size):
    with pytest.raises(dicenet.ConfigError, match="whole number or"):
        network("dicenet_010", img_size)


@every
def test_copies(name):
    net = network(name).eval()
    x = picture(64, 64)
    torch.testing.assert_close(copy.deepcopy(net)(x), net(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x), net(x))


@every
def test_channels_last(name):
    net = network(name).eval()
    x = picture(64, 64)
    expected = net(x)
    actual = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@every
def test_parameter_groups(name):
    net = network(name)
    names = {parameter_name for parameter_name, _ in net.named_parameters()}
    assert net.no_weight_decay() <= names
    assert net.no_weight_decay()
    for coarse in (False, True):
        groups = timm.models.group_parameters(net, net.group_matcher(coarse))
        assert {n for group in groups.values() for n in group} == names
        assert len(groups) > 3
    optimizer = timm.optim.create_optimizer_v2(net, "sgd", lr=0.1, weight_decay=1e-4, layer_decay=0.8)
    assert len(optimizer.param_groups) > 4


@smallest
def test_grad_checkpointing_gives_the_same_gradients(name):
    gradients = []
    for enable in (False, True):
        net = network(name, drop_rate=0.0).train()
        net.set_grad_checkpointing(enable)
        x = picture(64, 64).requires_grad_()
        net(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@smallest
def test_compiles_to_one_graph(name):
    net = network(name).eval()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for size in ((64, 64), (96, 64)):
            torch.testing.assert_close(compiled(picture(*size)), net(picture(*size)), rtol=1e-4, atol=1e-4)


@smallest
@pytest.mark.parametrize("size", [(64, 64), (96, 70)])
def test_exports_at_its_own_and_at_another_size(name, size):
    net = network(name).eval()
    x = picture(*size)
    program = torch.export.export(net, (x,))
    namespaces = {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert namespaces <= {"aten", "<built-in function getitem>"}, "only standard operators"
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SMALLEST))  # four minutes each from a cold cache, forward and backward
@pytest.mark.slow
def test_compiles_with_inductor(name):
    net = network(name).eval()
    # sizes fixed: another test's sizes would have them traced as symbols, which inductor cannot do for the backward
    # pass of a channel shuffle (torch 2.14, torchvision's ShuffleNetV2 as well)
    compiled = torch.compile(net, fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(picture(64, 64)), net(picture(64, 64)), rtol=1e-3, atol=1e-3)
    net.train()
    torch.compile(net, fullgraph=True, dynamic=False)(picture(64, 64)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@smallest
@pytest.mark.slow
def test_exports_with_a_range_on_one_side_of_the_trained_size(name):
    net = network(name).eval()
    dim = torch.export.Dim
    sizes = {2: dim("height", min=96, max=256), 3: dim("width", min=96, max=256)}
    program = torch.export.export(net, (picture(128, 160),), dynamic_shapes=({0: None, 1: None, **sizes},))
    for size in ((128, 160), (96, 256)):
        torch.testing.assert_close(program.module()(picture(*size)), net(picture(*size)), rtol=1e-4, atol=1e-4)
    crossing = {2: dim("height", min=32, max=256)}
    with pytest.raises(Exception, match="height"):
        torch.export.export(net, (picture(128, 160),), dynamic_shapes=({0: None, 1: None, **crossing},))
