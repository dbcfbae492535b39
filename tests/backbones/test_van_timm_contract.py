import pytest
import timm
import torch
from timm.layers import LayerNorm2d as TimmLayerNorm2d
from timm.layers import SelectAdaptivePool2d
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from van import VAN
from van.backbones.van import GlobalPool, LayerNorm2d
from van.errors import ShapeError
from van.weights.published import VARIANTS

CHANNELS, STRIDES = [32, 64, 160, 256], [4, 8, 16, 32]
NAMES = list(VARIANTS)

REGISTRATION = """
import importlib.util, sys
order = sys.argv[1]
if order == "van first":
    import van
    assert "timm" not in sys.modules and "torch" not in sys.modules
    finders = len(sys.meta_path)
    assert importlib.util.find_spec("timm") is not None  # as transformers and other libraries check for it
    assert importlib.util.find_spec("no_such_package_anywhere") is None
    assert len(sys.meta_path) == finders
    import timm
elif order == "timm first":
    import timm
    assert not timm.list_models("van_b*")
    import van
elif order == "layers first":
    from van import LKA
    assert "timm" not in sys.modules and "torch" in sys.modules
    from timm import create_model
    import timm
print(timm.list_models("van_b*"))
assert type(timm.__spec__.loader).__name__ == type(timm.__loader__).__name__ == "SourceFileLoader"
assert not any(type(finder).__module__.startswith("van") for finder in sys.meta_path)
assert timm.create_model("van_b0", device="meta").num_classes == 1000
assert sorted(timm.list_pretrained("van_b*")) == [f"van_b{i}.in1k" for i in range(4)]
"""


def test_importing_van_registers_seven_models_in_any_order(subtests, run_python):
    for order in ["van first", "layers first"]:
        with subtests.test(order=str(order)):
            assert run_python(REGISTRATION, order).splitlines()[0] == str(NAMES)


def create(**options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("van_b0", **options)


def images(count: int = 2, channels: int = 3, rows: int = 64, columns: int = 64) -> torch.Tensor:
    return torch.randn(count, channels, rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return create().eval()


def test_every_variant_has_timms_configuration(subtests):
    for name in NAMES:
        with subtests.test(name=str(name)):
            built = timm.create_model(name, device="meta")
            config, state = built.pretrained_cfg, built.state_dict()
            assert isinstance(built, VAN)
            assert config["architecture"] == name
            assert built.default_cfg is config
            assert (config["input_size"], config["crop_pct"], config["interpolation"]) == (
                (3, 224, 224),
                0.9,
                "bicubic",
            )
            assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
            assert f"{config['first_conv']}.weight" in state
            assert state[f"{config['classifier']}.weight"].shape[0] == config["num_classes"] == built.num_classes
            assert built.num_features == built.head_hidden_size == VARIANTS[name].dims[-1]
            x = torch.empty(1, *config["input_size"], device="meta")
            assert built.forward_features(x).shape == (1, built.num_features, *config["pool_size"])
            built.reset_classifier(0)
            assert f"{config['classifier']}.weight" not in built.state_dict()


def test_timms_preprocessing_is_the_released_networks(model):
    config = timm.data.resolve_model_data_config(model)
    assert (config["mean"], config["std"], config["crop_pct"]) == ((0.5,) * 3, (0.5,) * 3, 0.9)
    transform = timm.data.create_transform(**config)
    assert transform.transforms[0].size == 248


def test_classes_and_pooling(subtests):
    for options, shape in [
        ({}, (2, 1000)),
        ({"num_classes": 7}, (2, 7)),
        ({"num_classes": 0}, (2, 256)),
        ({"num_classes": 7, "global_pool": "max"}, (2, 7)),
        ({"num_classes": 7, "global_pool": "catavgmax"}, (2, 7)),
        ({"num_classes": 0, "global_pool": "catavgmax"}, (2, 512)),
        ({"num_classes": 0, "global_pool": ""}, (2, 256, 2, 3)),
    ]:
        with subtests.test(options=str(options), shape=str(shape)):
            assert create(**options).eval()(images(columns=96)).shape == shape


def test_in_chans_sets_the_input_channels(subtests):
    for channels in [1, 4, 12]:
        with subtests.test(channels=str(channels)):
            built = create(num_classes=2, in_chans=channels).eval()
            assert built(images(channels=channels)).shape == (2, 2)
            assert built.in_chans == channels


def test_drop_rates_apply_where_timms_do():
    built = create(drop_rate=0.4, drop_path_rate=0.2, proj_drop_rate=0.1)
    assert built.head_drop.p == 0.4
    assert built.block4[-1].drop_path.drop_prob == pytest.approx(0.2)
    assert {block.mlp.drop.p for stage in (1, 2, 3, 4) for block in getattr(built, f"block{stage}")} == {0.1}


def test_an_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="window_size"):
        create(window_size=7)


def test_forward_is_forward_features_and_forward_head(model):
    x = images()
    features = model.forward_features(x)
    assert features.shape == (2, 256, 2, 2)
    assert model.forward_head(features).equal(model(x))
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model.head(pooled), model(x))


def test_the_classifier_can_be_read_and_replaced():
    built = create().eval()
    assert isinstance(built.get_classifier(), nn.Linear)
    x, before = images(), built.forward_features(images())
    built.reset_classifier(5)
    assert built.num_classes == 5
    assert built(x).shape == (2, 5)
    assert built.get_classifier().weight.std().item() == pytest.approx(0.02, rel=0.1)
    built.reset_classifier(5, "catavgmax")
    assert built.get_classifier().in_features == 512
    built.reset_classifier(0)
    assert isinstance(built.get_classifier(), nn.Identity)
    assert built(x).shape == (2, 512)
    built.reset_classifier(0, "")
    assert built(x).equal(before)
    with pytest.raises(ShapeError, match=r"num_classes.*pooling.* 3"):
        built.reset_classifier(3)


def test_a_replaced_classifier_has_the_networks_dtype_and_device():
    built = create(dtype=torch.bfloat16)
    built.reset_classifier(3)
    assert built.head.weight.dtype == torch.bfloat16
    on_meta = timm.create_model("van_b0", device="meta")
    on_meta.reset_classifier(3)
    assert on_meta.head.weight.device.type == "meta"


def test_a_model_is_created_in_the_given_dtype(subtests):
    for dtype in [torch.float64, torch.bfloat16]:
        with subtests.test(dtype=str(dtype)):
            built = create(dtype=dtype, num_classes=3, drop_path_rate=0.1).eval()
            assert {parameter.dtype for parameter in built.parameters()} == {dtype}
            out = built(images().to(dtype))
            assert out.dtype == dtype
            assert out.isfinite().all()


def test_a_model_is_created_on_the_given_device():
    built = timm.create_model("van_b2", device="meta", drop_path_rate=0.1)
    assert {tensor.device.type for tensor in built.state_dict().values()} == {"meta"}
    assert built(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 1000)
    with torch.device("meta"):
        assert timm.create_model("van_b0").head.weight.device.type == "meta"


def as_list(features) -> list[torch.Tensor]:
    return list(features.values()) if isinstance(features, dict) else list(features)


def test_features_are_the_normalized_maps_of_the_stages_for_every_feature_cls(subtests, model):
    for form in [None, "list", "dict", "getter", "hook"]:
        for out_indices in [None, (0, 1, 2, 3), (1, 3), (2,), (-2, -1), 2]:
            with subtests.test(form=str(form), out_indices=str(out_indices)):
                options = {} if form is None else {"feature_cls": form}
                if out_indices is not None:
                    options["out_indices"] = out_indices
                backbone = create(features_only=True, **options).eval()
                every = model.forward_intermediates(images(columns=96), norm=True, intermediates_only=True)
                stages = (
                    range(4)
                    if out_indices is None
                    else range(4)[-out_indices:]
                    if isinstance(out_indices, int)
                    else out_indices
                )
                features = as_list(backbone(images(columns=96)))
                assert len(features) == len(list(stages))
                for actual, stage in zip(features, stages, strict=True):
                    torch.testing.assert_close(actual, every[stage], rtol=1e-5, atol=1e-5)
                assert backbone.feature_info.channels() == [CHANNELS[stage] for stage in stages]
                assert backbone.feature_info.reduction() == [STRIDES[stage] for stage in stages]
                assert [m.shape[1] for m in features] == backbone.feature_info.channels()


def test_features_of_odd_sizes_have_gradients():
    backbone = create(features_only=True, in_chans=4, out_indices=(0, 3), drop_path_rate=0.1).train()
    first, last = backbone(images(channels=4, rows=45, columns=37))
    assert (first.shape, last.shape) == ((2, 32, 12, 10), (2, 256, 2, 2))
    (first.mean() + last.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_feature_info_names_modules_that_exist(model):
    for info, channels, stride in zip(model.feature_info, CHANNELS, STRIDES, strict=True):
        assert (info["num_chs"], info["reduction"]) == (channels, stride)
        assert model.get_submodule(info["module"]).weight.shape == (channels,)


def test_intermediates_equal_features_before_or_after_the_norm(subtests, model):
    for norm in [False, True]:
        for indices, stages in [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-1], [3])]:
            with subtests.test(norm=str(norm), indices=str(indices), stages=str(stages)):
                x = images()
                final, maps = model.forward_intermediates(x, indices, norm=norm)
                assert final.equal(model.forward_features(x))
                only = model.forward_intermediates(x, indices, norm=norm, intermediates_only=True)
                assert len(maps) == len(only) == len(stages)
                everything = model.forward_intermediates(x, norm=True, intermediates_only=True)
                for stage, actual, alone in zip(stages, maps, only, strict=True):
                    assert actual.equal(alone)
                    normalized = actual if norm else getattr(model, f"norm{stage + 1}")(actual)
                    assert normalized.equal(everything[stage])
                    assert norm or not actual.equal(everything[stage])


def test_stop_early_skips_later_stages(model):
    reached = []
    handle = model.patch_embed3.register_forward_hook(lambda *_: reached.append(3))
    try:
        final, maps = model.forward_intermediates(images(), [0, 1], norm=True, stop_early=True)
        assert not reached
        assert final.equal(maps[1])
        model.forward_intermediates(images(), [0, 1], norm=True)
        assert reached == [3]
    finally:
        handle.remove()


def test_another_layout_of_intermediates_is_refused(model):
    with pytest.raises(ShapeError, match=r"output_fmt.*'NCHW'.*'NLC'"):
        model.forward_intermediates(images(), output_fmt="NLC")


def test_pruning_keeps_the_requested_stages(subtests, model):
    for prune_norm in [False, True]:
        with subtests.test(prune_norm=str(prune_norm)):
            pruned = create().eval()
            kept = pruned.prune_intermediate_layers([0, 1], prune_norm=prune_norm)
            assert kept == [0, 1]
            assert not any(name.startswith(("block3", "patch_embed4", "norm4", "head")) for name in pruned.state_dict())
            assert ("norm2.weight" in pruned.state_dict()) is not prune_norm
            assert (pruned.num_features, pruned.num_classes) == (64, 0)
            expected = model.forward_intermediates(images(), [0, 1], norm=not prune_norm, intermediates_only=True)
            assert pruned(images()).equal(expected[1])
            actual = pruned.forward_intermediates(images(), kept, intermediates_only=True)
            raw = model.forward_intermediates(images(), [0, 1], intermediates_only=True)
            assert all(x.equal(y) for x, y in zip(actual, raw, strict=True))


def test_pruning_no_stage_can_keep_the_head(model):
    whole = create().eval()
    assert whole.prune_intermediate_layers(1, prune_head=False) == [3]
    assert whole(images()).equal(model(images()))
    whole.prune_intermediate_layers(1)
    assert whole(images()).equal(model.forward_features(images()))


def depth_of(name: str) -> tuple[int, int]:
    """Return (stage, position), the order in which a parameter's module runs."""
    module, *rest = name.split(".")
    stage = 5 if module == "head" else int(module[-1])
    return stage, {"patch_embed": -1, "block": int(rest[0]) if rest[0].isdigit() else 0}.get(module.rstrip("1234"), 999)


def test_layer_decay_rates_do_not_decrease_with_depth(subtests):
    for name in ["van_b0", "van_b2"]:
        with subtests.test(name=str(name)):
            built = timm.create_model(name, device="meta")
            groups = param_groups_layer_decay(
                built, 0.05, no_weight_decay_list=built.no_weight_decay(), layer_decay=0.7, min_scale=0
            )
            names = {id(parameter): name for name, parameter in built.named_parameters()}
            scales = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
            assert scales.keys() == set(names.values())
            in_order = [scales[name] for name in sorted(scales, key=depth_of)]
            assert in_order == sorted(in_order)
            assert scales["head.weight"] == 1
            per_block = {scales[name] for name in scales if name.startswith("block")}
            assert len(per_block) >= sum(VARIANTS[name].depths) - 1  # (nearly) every block has its own rate


def test_coarse_parameter_groups_are_the_stages(model):
    groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert groups.keys() == {name for name, _ in model.named_parameters()}
    stages = {depth_of(name)[0]: set() for name in groups}
    for name, group in groups.items():
        stages[depth_of(name)[0]].add(group)
    assert all(len(groups) == 1 for stage, groups in stages.items() if stage > 1)
    assert max(stages[1]) < min(stages[2])
    assert max(max(groups) for stage, groups in stages.items() if stage < 5) < min(stages[5])


def test_scales_norms_and_biases_have_no_weight_decay(model):
    plain = model.no_weight_decay()
    assert plain == {name for name, _ in model.named_parameters() if name[-13:-2] == "layer_scale"}
    without, with_decay = param_groups_weight_decay(model, 0.05, no_weight_decay_list=plain)
    assert (without["weight_decay"], with_decay["weight_decay"]) == (0.0, 0.05)
    assert all(parameter.ndim > 1 for parameter in with_decay["params"])
    assert all(parameter.ndim == 1 for parameter in without["params"])


def test_gradient_checkpointing_changes_neither_outputs_nor_gradients(subtests):
    for features_only in [False, True]:
        with subtests.test(features_only=str(features_only)):
            options = {"features_only": True} if features_only else {"num_classes": 5}
            runs = []
            for enable in (False, True):
                built = create(**options).train()
                built.set_grad_checkpointing(enable)
                out = built(images())
                sum(o.square().mean() for o in as_list(out if features_only else [out])).backward()
                runs.append((as_list(out), [parameter.grad for parameter in built.parameters()]))
            for plain, checkpointed in zip(runs[0], runs[1], strict=True):
                for actual, reference in zip(plain, checkpointed, strict=True):
                    torch.testing.assert_close(actual, reference, rtol=1e-6, atol=1e-7)


def test_gradient_checkpointing_runs_the_blocks_twice():
    """Control: activations are really dropped and recomputed."""
    built = create(num_classes=2).train()
    calls = []
    built.block2[1].register_forward_pre_hook(lambda *_: calls.append(1))
    built.set_grad_checkpointing()
    built(images()).sum().backward()
    assert len(calls) == 2
    built.set_grad_checkpointing(False)
    built(images()).sum().backward()
    assert len(calls) == 3


def test_global_pool_and_norm_equal_timms(subtests):
    maps = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(0))
    for pool_type in ("avg", "max", "avgmax", "catavgmax", ""):
        with subtests.test(pool_type):
            expected = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))(maps)
            assert GlobalPool(pool_type)(maps).equal(expected)
    ours, theirs = LayerNorm2d(8, eps=1e-3), TimmLayerNorm2d(8, eps=1e-3)
    for norm in (ours, theirs):
        torch.nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    assert ours(maps).equal(theirs(maps))
    with pytest.raises(ShapeError, match="global_pool: expected one of avg, max"):
        GlobalPool("mean")
