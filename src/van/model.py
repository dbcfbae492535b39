"""``Model``: a network with its task, class names and preprocessing, loaded from any source.

Sources: a checkpoint of this package, a run folder, a public weights file, a folder of transformers, a timm model
name, a file that ``van export`` wrote. A network whose options hold ``head`` has that head, and its VAN under
``backbone``.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from van.backbones.fusion import can_fuse, fuse
from van.checkpoint import Checkpoint
from van.errors import CheckpointError, UsageError
from van.heads import HEADS, heads_of
from van.images import ImageInput
from van.preprocess import CenterCropPreprocess, ResizePreprocess

if TYPE_CHECKING:
    from van.api import Exported, Metrics, Report
    from van.predict import Predictor
    from van.tasks.base import Task


class Model:
    """A network with its task, class names and preprocessing: what every verb starts from.

    ``Model.load`` reads one from any source; ``Model(network, class_names=...)`` wraps a network of your own.

    Args:
        network: maps preprocessed images to the outputs that the task decodes; it is put into evaluation mode.
        class_names: in the order of the outputs; names for ``network.num_classes`` outputs if None: ImageNet's for
            1,000, numbered ones for any other number.
        preprocess: the conversion from an image to a tensor; if None that of timm's configuration of the network, or
            the released VAN's.
        task: ``classify``, ``detect``, ``instances``, ``segment`` or ``panoptic``.
        name: the timm model name; if empty that of ``network.pretrained_cfg``, or the name of the network's class.
        options: keyword arguments beside ``num_classes`` that create the network anew; ``head`` is one of
            ``van.heads.HEADS``.
        task_options: plain values from which, with the class names, the task is rebuilt.
        notes: messages for the user, such as where the weights came from and what was skipped.
        new_head: the classifier is untrained, because another number of classes was requested.
        recipe, metrics, origin: of a checkpoint: its training settings, its validation metrics, its source.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        class_names: Sequence[str] | None = None,
        preprocess: CenterCropPreprocess | ResizePreprocess | None = None,
        task: str = "classify",
        name: str = "",
        options: Mapping[str, Any] | None = None,
        task_options: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
        new_head: bool = False,
        recipe: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        origin: str = "",
    ) -> None:
        config = getattr(network, "pretrained_cfg", None) or {}
        if preprocess is None:
            preprocess = CenterCropPreprocess.from_timm(config) if config.get("mean") else CenterCropPreprocess()
        if class_names is None:
            class_names = imagenet_class_names(int(getattr(network, "num_classes", 0)))
        self.network = network.eval()
        self.class_names = tuple(class_names)
        self.preprocess: CenterCropPreprocess | ResizePreprocess = preprocess
        self.task = task
        self.name = name or config.get("architecture") or type(network).__name__
        self.options: Mapping[str, Any] = dict(options or {})
        self.task_options: Mapping[str, Any] = dict(task_options or {})
        self.notes, self.new_head = tuple(notes), new_head
        self.recipe: Mapping[str, Any] = dict(recipe or {})
        self.metrics: Mapping[str, float] = dict(metrics or {})
        self.origin = origin
        self.source = ""
        """What ``load`` was given; empty for a network of your own."""
        self._predictors: dict[tuple[Any, ...], Predictor] = {}

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        num_classes: int | None = None,
        options: Mapping[str, Any] | None = None,
        backbone_only: bool = False,
        network: nn.Module | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> "Model":
        """Load a model from a file or folder, or by name with its public weights.

        Args:
            source: the path of a checkpoint, a run folder, a public weights file, a folder that transformers saved or
                an exported file; or a timm model name such as ``van_b2``, of which a unique prefix such as
                ``swin_tiny`` is enough.
            num_classes: number of classes. None keeps the stored classifier; another number than the stored one
                replaces it by an untrained one; 0 removes it, and the head, so that the backbone remains.
            options: further keyword arguments of the network, such as ``drop_path_rate``.
            backbone_only: create a classification network from the backbone, whatever head the file holds.
            network: for a checkpoint of a network that ``Model.save`` wrote and timm does not know: a network to load
                the weights into.
            threads, device: for the runtime of an exported file; its default, and the CPU, if None.

        Raises:
            CheckpointError: the file cannot be used.
            HubError: the weights of that name cannot be downloaded.
            MissingExtra: the runtime of an exported file is not installed.
            UsageError: ``source`` is neither a file nor a model, or an argument does not apply to it.
        """
        from van.model_sources import load_source

        model = load_source(source, num_classes, dict(options or {}), backbone_only, network, threads, device)
        model.source = str(source)
        return model

    def replace(self, **changes: Any) -> "Model":
        """Return a model with some arguments of ``Model`` changed; the network is shared."""
        shared = {
            name: value for name, value in vars(self).items() if name not in ("_predictors", "deployed", "source")
        }
        values = shared | changes
        model = Model(values.pop("network"), **values)
        model.source = self.source
        return model

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint, from which ``Model.load`` restores this model; return its path.

        Raises:
            CheckpointError: the file cannot be written, or the model was loaded from an exported file.
            UsageError: the name does not end in ``.safetensors``.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise UsageError(f"path: expected a name ending in .safetensors, got {path}")
        self.check_has_weights()
        Checkpoint(
            task=self.task,
            model=self.name,
            model_options=self.options,
            task_options=self.task_options,
            class_names=self.class_names,
            preprocess=self.preprocess,
            state=self.network.state_dict(),
            recipe=self.recipe,
            metrics=self.metrics,
            source=self.origin,
        ).save(path)
        return path

    @property
    def is_exported(self) -> bool:
        """Whether the network is the session of an exported file, which has no parameters."""
        return hasattr(self.network, "header")

    @cached_property
    def deployed(self) -> nn.Module:
        """The network in its deploy form: BatchNorms and layer scales merged into convolutions, if it has any.

        It is computed once, and does not follow later changes of ``network``.
        """
        return fuse(self.network) if can_fuse(self.network) else self.network

    def fused(self) -> "Model":
        """Return the model with ``deployed`` as its network, which predicts faster and cannot be trained."""
        return self.replace(network=self.deployed)

    def make_task(self, **options: Any) -> "Task":
        """Return the task: collation, loss, metric and decoding; ``options`` replace ``task_options``."""
        from van.tasks.registry import make_task

        return make_task(self.task, self.class_names, {**self.task_options, **options})

    def predict(self, images: ImageInput | Iterable[ImageInput], **options: Any) -> Any:
        """Predict one image, or several; arguments as those of ``van.api.predict``."""
        import van.api as api

        return api.predict(self, images, **options)

    def predictor(self, **options: Any) -> "Predictor":
        """Return the predictor with these options, kept for the next call; see ``van.predict.Predictor``."""
        from van.predict import Predictor

        key = tuple(sorted((name, str(value)) for name, value in options.items()))
        if key not in self._predictors:
            self._predictors[key] = Predictor(self, **options)
        return self._predictors[key]

    def explain(self, images: Any, **options: Any) -> Any:
        """Explain the prediction for one image, or for each of several; arguments as those of ``van.api.explain``."""
        import van.api as api

        return api.explain(self, images, **options)

    def evaluate(self, data: str | Path, **options: Any) -> "Metrics":
        """Evaluate on an annotated dataset; arguments as those of ``van.api.evaluate``."""
        import van.api as api

        return api.evaluate(self, data, **options)

    def export(self, out: str | Path, **options: Any) -> "Exported":
        """Write the file of another runtime; arguments as those of ``van.api.export``."""
        import van.api as api

        return api.export(self, out, **options)

    def report(self, out: str | Path | None = None, **options: Any) -> "Report":
        """Write the report of the run that the model was loaded from; arguments as those of ``van.api.report``."""
        import van.api as api

        return api.report(self, out, **options)

    def serve(self, **options: Any) -> int:
        """Serve the model over HTTP until a stop signal; arguments as those of ``van.api.serve``."""
        import van.api as api

        return api.serve(self, **options)

    def check_can_predict(self) -> None:
        """Check that the network can make predictions for its task.

        Raises:
            UsageError: it has no classes or no head for its task, or its input is not RGB.
        """
        head, channels = self.options.get("head"), self.options.get("in_chans", 3)
        if not self.class_names:
            raise UsageError(f"{self.name}: expected classes, got a backbone without any; train it for a task first")
        is_backbone = hasattr(self.network, "pretrained_cfg")  # somebody's own network may need no head of ours
        if self.task != "classify" and (head or is_backbone) and head not in heads_of(self.task):
            known = ", ".join(heads_of(self.task))
            raise UsageError(f"{self.name}: expected a head for task {self.task!r} ({known}), got {head!r}")
        if channels != 3:
            raise UsageError(f"{self.name}: expected a network for RGB images (3 channels), got {channels} channels")

    def check_has_weights(self) -> None:
        """Check that the network is no session of an exported file, which can only predict.

        Raises:
            CheckpointError: it is.
        """
        if self.is_exported:
            raise CheckpointError(
                f"{self.origin}: expected a network, got an exported file, which only van predict, van eval and van "
                "serve can load; give the checkpoint that it was exported from"
            )

    def __repr__(self) -> str:
        head = f" with {HEADS[self.options['head']].title}" if self.options.get("head") in HEADS else ""
        rule = self.preprocess
        size = f"{rule.image_size}" if isinstance(rule, CenterCropPreprocess) else f"{rule.min_size}-{rule.max_size}"
        millions = sum(parameter.numel() for parameter in self.network.parameters()) / 1e6
        count = "exported" if self.is_exported else f"{millions:.1f} M parameters"
        return f"Model({self.name}{head}, task={self.task}, {len(self.class_names)} classes, {size} px, {count})"


def imagenet_class_names(num_classes: int) -> tuple[str, ...]:
    """Return ImageNet-1K's class names for 1,000 classes, numbered names for any other count."""
    if num_classes == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        return tuple(info.index_to_description(index) for index in range(num_classes))
    return numbered_class_names(num_classes)


def numbered_class_names(num_classes: int) -> tuple[str, ...]:
    """Return placeholder class names: ``class 0``, ``class 1``, ..."""
    return tuple(f"class {index}" for index in range(num_classes))
