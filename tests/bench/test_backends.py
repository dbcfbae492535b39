"""Benchmark backends match float64 from the same weights, and deviations are detected."""

from pathlib import Path

import pytest
import torch

from van.bench import backends
from van.bench.backends import BACKENDS, layout_of, prepare, supported_backends
from van.bench.benchmark_model import BenchmarkModel
from van.bench.models import TOLERANCE
from van.bench.networks import NETWORKS
from van.bench.training import TRAINABLE_BACKENDS, TrainingBenchmark
from van.errors import UsageError
from van.ops import native

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark_model(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkModel:
    """Return a van_b0 for 64 px. Do not modify it."""
    folder = tmp_path_factory.mktemp("exported")
    return BenchmarkModel(NETWORKS["van_b0"], image_size=64, kernel_size=None, images=5, folder=folder)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Capture the graphs of torch.compile without generating code, which would take half a minute."""
    found: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        found.append(graph)
        return graph

    monkeypatch.setattr(backends, "_COMPILER_BACKEND", keep)
    return found


def measure_errors(backend: str, benchmark_model: BenchmarkModel) -> list[float]:
    runner = prepare(backend, benchmark_model, threads=1, device=CPU)
    return [benchmark_model.error(runner(benchmark_model.images[:count])()) for count in (1, 3, 5)]


@pytest.mark.parametrize("backend", ["van", "reference", "onnxruntime", "openvino"])
def test_backends_match_float64_for_any_batch_size(backend, benchmark_model):
    assert max(measure_errors(backend, benchmark_model)) < TOLERANCE / 5


def count_van_operators(graph: torch.fx.GraphModule) -> int:
    return sum(str(node.target).startswith("van.") for node in graph.graph.nodes)


def test_compiled_networks_match_float64_and_do_not_share_code(benchmark_model, graphs):
    """Both have the same class and shape, for which PyTorch would reuse the code of the first."""
    assert max(measure_errors("compile", benchmark_model)) < TOLERANCE / 5
    assert [count_van_operators(graph) for graph in graphs] == [0, 0, 0]  # one for each batch size
    assert max(measure_errors("van_compile", benchmark_model)) < TOLERANCE / 5
    expected = 0 if native.unavailable_reason() else 2 * 13  # the pair and the convolution with GELU of each block
    assert [count_van_operators(graph) for graph in graphs[3:]] == [expected] * 3


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["compile", "van_compile"])
def test_generated_code_matches_float64(backend, benchmark_model):
    assert max(measure_errors(backend, benchmark_model)) < TOLERANCE / 5


@pytest.mark.parametrize("backend", ["eager", "onnxruntime", "openvino"])
def test_peers_match_float64(backend, tmp_path):
    peer = BenchmarkModel(NETWORKS["resnet50"], image_size=64, kernel_size=None, images=2, folder=tmp_path)
    runner = prepare(backend, peer, threads=1, device=CPU)
    assert peer.error(runner(peer.images[:2])()) < TOLERANCE / 5


def test_outputs_differ_between_images(benchmark_model):
    """A runtime that repeats the output of the first image would pass a check of the first."""
    logits = prepare("onnxruntime", benchmark_model, threads=1, device=CPU)(benchmark_model.images)()
    assert logits.shape == (5, 1000)
    assert (logits[1:] - logits[0]).abs().amax(dim=1).min() > 100 * TOLERANCE


def test_error_detects_small_deviations(benchmark_model):
    """The control: bfloat16, swapped images, and NaN."""
    right = prepare("reference", benchmark_model, threads=1, device=CPU)(benchmark_model.images[:2])()
    assert benchmark_model.error(right) < TOLERANCE / 5
    assert benchmark_model.error(right.bfloat16()) > 5 * TOLERANCE
    assert benchmark_model.error(right.flip(0)) > 100 * TOLERANCE
    assert not benchmark_model.error(right * torch.nan) <= TOLERANCE


def test_backends_use_their_preferred_layouts():
    van, resnet, swin = NETWORKS["van_b0"], NETWORKS["resnet50"], NETWORKS["swin_tiny"]
    assert supported_backends(van) == ("van", "reference", "van_compile", "compile", "onnxruntime", "openvino")
    layouts = ["channels_last", "NCHW", "channels_last", "channels_last", "NCHW", "NCHW"]
    assert [layout_of(backend, van) for backend in supported_backends(van)] == layouts
    assert (layout_of("eager", resnet), layout_of("eager", swin)) == ("channels_last", "NCHW")


def test_van_backend_is_fused_and_reference_backend_is_not(benchmark_model, monkeypatch):
    prepared: list[tuple[str, torch.nn.Module]] = []
    in_pytorch = backends._prepare_pytorch

    def record(model, layout, device, **options):
        prepared.append((options.get("ops_backend", "auto"), model))
        return in_pytorch(model, layout, device, **options)

    monkeypatch.setattr(backends, "_prepare_pytorch", record)
    for backend in ("van", "reference"):
        prepare(backend, benchmark_model, threads=1, device=CPU)
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) for _, model in prepared]
    assert [backend for backend, _ in prepared] == ["auto", "reference"]
    assert norms[0] == 0
    assert norms[1] == 2 * 13 + 4  # two per block, one per patch embedding


def test_graph_breaks_are_errors(graphs, tmp_path):
    """With graph breaks, partly compiled code would be reported as compiled."""
    broken = BenchmarkModel(NETWORKS["van_b0"], image_size=64, kernel_size=None, images=2, folder=tmp_path)
    broken.fused.register_forward_pre_hook(lambda *_: print("this breaks the graph"))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        prepare("compile", broken, threads=1, device=CPU)(broken.images[:1])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_cpu_runtimes_reject_gpu_devices(backend, benchmark_model):
    with pytest.raises(UsageError, match=f"{backend}.*cpu.*cuda:0"):
        prepare(backend, benchmark_model, threads=1, device=torch.device("cuda:0"))


@pytest.mark.parametrize("backend", TRAINABLE_BACKENDS[:2])
def test_gradients_match_float64(backend, benchmark_model):
    assert TrainingBenchmark(backend, benchmark_model, CPU).gradient_error() < NETWORKS["van_b0"].gradient_tolerance / 5


def test_gradient_error_detects_a_wrong_kernel_gradient(benchmark_model):
    """The control: the gradient of one kernel is mirrored."""
    training_benchmark = TrainingBenchmark("reference", benchmark_model, CPU)
    weight = training_benchmark._model.get_parameter("block1.0.attn.spatial_gating_unit.conv_spatial.weight")
    weight.register_hook(lambda gradient: gradient.flip(3))
    assert training_benchmark.gradient_error() > 10 * NETWORKS["van_b0"].gradient_tolerance


@pytest.mark.parametrize("backend", TRAINABLE_BACKENDS[:2])
def test_training_step_updates_a_copy_of_every_weight(backend, benchmark_model, monkeypatch):
    models: list[torch.nn.Module] = []
    adamw = torch.optim.AdamW
    training_benchmark = TrainingBenchmark(backend, benchmark_model, CPU)

    def keep(parameters, **options):
        parameters = list(parameters)
        models.append(parameters)
        return adamw(parameters, **options)

    monkeypatch.setattr(torch.optim, "AdamW", keep)
    step = training_benchmark.step(3)
    before = [parameter.detach().clone() for parameter in models[0]]
    step()
    assert all(not torch.equal(old, new) for old, new in zip(before, models[0], strict=True))
    assert all(torch.equal(old, kept) for old, kept in zip(before, benchmark_model.model.parameters(), strict=True))


def test_every_backend_has_a_description():
    assert all(text and not text.endswith(".") for text in BACKENDS.values())


def test_both_runtimes_share_one_exported_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from van.bench import benchmark_model as module

    written: list[Path] = []
    write = module.write_onnx
    monkeypatch.setattr(module, "write_onnx", lambda *arguments: written.append(arguments[-1]) or write(*arguments))
    peer = BenchmarkModel(NETWORKS["van_b0"], image_size=32, kernel_size=None, images=2, folder=tmp_path)
    for backend in ("onnxruntime", "openvino"):
        assert peer.error(prepare(backend, peer, threads=1, device=CPU)(peer.images)()) < TOLERANCE
    assert len(written) == 1
