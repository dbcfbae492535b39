"""Every way answers as float64 does, from the same weights, and a way that does not is seen."""

from pathlib import Path

import pytest
import torch

from van.bench import ways
from van.bench.models import TOLERANCE
from van.bench.networks import NETWORKS
from van.bench.subject import Subject
from van.bench.training import TRAINED, Trainee
from van.bench.ways import WAYS, layout_of, prepare, ways_of
from van.errors import UsageError
from van.ops import native

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A van_b0 for 64 px. Not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    return Subject(NETWORKS["van_b0"], size_px=64, kernel_size=None, pictures=5, folder=folder)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """torch.compile as far as its graphs, which come here: a second. C++ from them takes half a minute."""
    found: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        found.append(graph)
        return graph

    monkeypatch.setattr(ways, "_CODE_GENERATOR", keep)
    return found


def errors_of(way: str, subject: Subject) -> list[float]:
    runner = prepare(way, subject, threads=1, device=CPU)
    return [subject.error(runner(subject.pictures[:count])()) for count in (1, 3, 5)]


@pytest.mark.parametrize("way", ["van", "reference", "onnxruntime", "openvino"])
def test_a_way_answers_as_float64_does_for_any_number_of_pictures(way, subject):
    assert max(errors_of(way, subject)) < TOLERANCE / 5


def own_operators(graph: torch.fx.GraphModule) -> int:
    return sum(str(node.target).startswith("van.") for node in graph.graph.nodes)


def test_compiled_networks_answer_as_float64_does_each_from_its_own_code(subject, graphs):
    """Both are of one class and one shape, under which PyTorch would serve the second by the first one's code."""
    assert max(errors_of("compile", subject)) < TOLERANCE / 5
    assert [own_operators(graph) for graph in graphs] == [0, 0, 0]  # one for each batch size
    assert max(errors_of("van_compile", subject)) < TOLERANCE / 5
    expected = 0 if native.why_not() else 2 * 13  # the pair and the convolution with GELU of each block
    assert [own_operators(graph) for graph in graphs[3:]] == [expected] * 3


@pytest.mark.slow
@pytest.mark.parametrize("way", ["compile", "van_compile"])
def test_generated_code_answers_as_float64_does(way, subject):
    assert max(errors_of(way, subject)) < TOLERANCE / 5


@pytest.mark.parametrize("way", ["eager", "onnxruntime", "openvino"])
def test_a_peer_answers_as_float64_does(way, tmp_path):
    peer = Subject(NETWORKS["resnet50"], size_px=64, kernel_size=None, pictures=2, folder=tmp_path)
    runner = prepare(way, peer, threads=1, device=CPU)
    assert peer.error(runner(peer.pictures[:2])()) < TOLERANCE / 5


def test_every_picture_has_its_own_answer(subject):
    """A runtime that answers the first picture for all of them would pass a check of the first."""
    logits = prepare("onnxruntime", subject, threads=1, device=CPU)(subject.pictures)()
    assert logits.shape == (5, 1000)
    assert (logits[1:] - logits[0]).abs().amax(dim=1).min() > 100 * TOLERANCE


def test_an_answer_that_is_a_little_off_is_seen(subject):
    """The control: bfloat16, a wrong picture, and one that is no number."""
    right = prepare("reference", subject, threads=1, device=CPU)(subject.pictures[:2])()
    assert subject.error(right) < TOLERANCE / 5
    assert subject.error(right.bfloat16()) > 5 * TOLERANCE
    assert subject.error(right.flip(0)) > 100 * TOLERANCE
    assert not subject.error(right * torch.nan) <= TOLERANCE


def test_layouts_are_the_usual_ones():
    van, resnet, swin = NETWORKS["van_b0"], NETWORKS["resnet50"], NETWORKS["swin_tiny"]
    assert ways_of(van) == ("van", "reference", "van_compile", "compile", "onnxruntime", "openvino")
    layouts = ["channels_last", "NCHW", "channels_last", "channels_last", "NCHW", "NCHW"]
    assert [layout_of(way, van) for way in ways_of(van)] == layouts
    assert (layout_of("eager", resnet), layout_of("eager", swin)) == ("channels_last", "NCHW")


def test_the_van_way_is_fused_and_the_reference_is_as_released(subject, monkeypatch):
    seen: list[tuple[str, torch.nn.Module]] = []
    in_pytorch = ways._in_pytorch

    def look(model, layout, device, **options):
        seen.append((options.get("backend", "auto"), model))
        return in_pytorch(model, layout, device, **options)

    monkeypatch.setattr(ways, "_in_pytorch", look)
    for way in ("van", "reference"):
        prepare(way, subject, threads=1, device=CPU)
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) for _, model in seen]
    assert [backend for backend, _ in seen] == ["auto", "reference"]
    assert norms[0] == 0
    assert norms[1] == 2 * 13 + 4  # two a block, one a patch embedding


def test_a_compiled_network_is_whole_or_an_error(graphs, tmp_path):
    """A graph that breaks would be measured in pieces, and called compiled."""
    broken = Subject(NETWORKS["van_b0"], size_px=64, kernel_size=None, pictures=2, folder=tmp_path)
    broken.deployed.register_forward_pre_hook(lambda *_: print("this breaks the graph"))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        prepare("compile", broken, threads=1, device=CPU)(broken.pictures[:1])


@pytest.mark.parametrize("way", ["onnxruntime", "openvino"])
def test_a_runtime_on_the_cpu_is_not_measured_on_a_gpu(way, subject):
    with pytest.raises(UsageError, match=f"{way} is measured on the CPU only; the device is cuda:0"):
        prepare(way, subject, threads=1, device=torch.device("cuda:0"))


@pytest.mark.parametrize("way", TRAINED[:2])
def test_gradients_are_those_of_float64(way, subject):
    assert Trainee(way, subject, CPU).gradient_error() < NETWORKS["van_b0"].gradient_tolerance / 5


def test_a_gradient_that_is_a_little_off_is_seen(subject):
    """The control: one kernel of one block is given the gradient of its mirror image."""
    trainee = Trainee("reference", subject, CPU)
    weight = trainee._model.get_parameter("block1.0.attn.spatial_gating_unit.conv_spatial.weight")
    weight.register_hook(lambda gradient: gradient.flip(3))
    assert trainee.gradient_error() > 10 * NETWORKS["van_b0"].gradient_tolerance


@pytest.mark.parametrize("way", TRAINED[:2])
def test_a_training_step_changes_every_weight_and_leaves_the_subject_alone(way, subject, monkeypatch):
    models: list[torch.nn.Module] = []
    adamw = torch.optim.AdamW
    trainee = Trainee(way, subject, CPU)

    def keep(parameters, **options):
        parameters = list(parameters)
        models.append(parameters)
        return adamw(parameters, **options)

    monkeypatch.setattr(torch.optim, "AdamW", keep)
    step = trainee.step(3)
    before = [parameter.detach().clone() for parameter in models[0]]
    step()
    assert all(not torch.equal(old, new) for old, new in zip(before, models[0], strict=True))
    assert all(torch.equal(old, kept) for old, kept in zip(before, subject.model.parameters(), strict=True))


def test_every_way_says_what_it_is():
    assert all(text and not text.endswith(".") for text in WAYS.values())


def test_an_exported_file_serves_both_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from van.bench import subject as module

    written: list[Path] = []
    write = module.write_onnx
    monkeypatch.setattr(module, "write_onnx", lambda *given: written.append(given[-1]) or write(*given))
    peer = Subject(NETWORKS["van_b0"], size_px=32, kernel_size=None, pictures=2, folder=tmp_path)
    for way in ("onnxruntime", "openvino"):
        assert peer.error(prepare(way, peer, threads=1, device=CPU)(peer.pictures)()) < TOLERANCE
    assert len(written) == 1
