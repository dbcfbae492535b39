"""``van explain MODEL IMAGES... --out FOLDER``: attribution maps, LKA attention, receptive fields, faithfulness."""

from collections.abc import Sequence

from van.cli.arguments import DISPLAY, INPUT, OUTPUT, RUNTIME, Command, parse
from van.cli.explain.settings import ExplainSettings
from van.cli.verbs import VERBS
from van.errors import UsageError

COMMAND = Command(
    "explain",
    ExplainSettings,
    summary=VERBS["explain"],
    details="Writes class activation maps over the image, the same as numbers (NAME.npy, one value per pixel), and a "
    "grid of all. Unreadable images are reported on standard error and set status 1.",
    examples=(
        "van explain runs/digits/best.safetensors digits/val/7 --out maps",
        "van explain van_b2 cat.jpg --out maps --classes tabby 'Egyptian cat' --method grad-cam layer-cam",
        "van explain runs/apples/best.safetensors tree.jpg --out maps --box 10 20 80 90",
        "van explain --compare van_b2 swin_tiny convnext_tiny cat.jpg --out maps",
        "van explain van_b0 cat.jpg --out attention --lka stage1 stage4 --channels mean",
        "van explain --receptive-fields --random-init van_b0 resnet50 convnext_tiny swin_tiny --out fields",
        "van explain runs/digits/best.safetensors --faithfulness --data digits --out scores",
    ),
    groups={
        INPUT: ("model_and_images",),
        OUTPUT: ("out",),
        "Class activation maps": ("method", "layer", "classes", "top", "box", "compare"),
        "LKA attention": ("lka", "channels"),
        "Receptive fields": ("receptive_fields", "random_init", "image_size"),
        "Faithfulness": ("faithfulness", "data", "limit"),
        RUNTIME: ("batch_size", "device"),
        DISPLAY: ("json",),
    },
)


def run(arguments: Sequence[str]) -> int:
    """Run the command; unreadable images are skipped and give exit status 1."""
    settings = parse(COMMAND, arguments)
    _check_settings(settings)
    from van.ops import enable_memory_reuse

    enable_memory_reuse()
    if settings.receptive_fields:
        from van.cli.explain.receptive_fields import run_receptive_fields

        return run_receptive_fields(settings)
    if settings.faithfulness:
        from van.cli.explain.faithfulness import run_faithfulness

        return run_faithfulness(settings)
    if settings.lka is not None:
        from van.cli.explain.lka_attention import draw_lka_attention

        return draw_lka_attention(settings)
    from van.cli.explain.maps import compare_models, draw_maps

    return compare_models(settings) if settings.compare else draw_maps(settings)


def _check_settings(settings: ExplainSettings) -> None:
    """Raise UsageError for invalid combinations of flags, before a model is loaded."""
    modes = {"--compare": settings.compare, "--lka": settings.lka is not None}
    modes |= {"--receptive-fields": settings.receptive_fields, "--faithfulness": settings.faithfulness}
    selected = [flag for flag, given in modes.items() if given]
    if len(selected) > 1:
        raise UsageError(f"expected one of {', '.join(modes)}, got {' and '.join(selected)}")
    if settings.out.exists() and not settings.out.is_dir():
        raise UsageError(f"--out: expected a folder, got the file {settings.out}")
    for name in ("top", "batch_size", "image_size", "limit"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    if settings.faithfulness and settings.data is None:
        raise UsageError("--faithfulness: expected --data with labeled images; add it")
    for flag, given, mode in (
        ("--data", settings.data is not None, "--faithfulness"),
        ("--limit", settings.limit is not None, "--faithfulness"),
        ("--channels", bool(settings.channels), "--lka"),
        ("--random-init", settings.random_init, "--receptive-fields"),
    ):
        if given and not modes[mode]:
            raise UsageError(f"{flag}: expected together with {mode}; add {mode} or remove {flag}")
    if not settings.model_and_images:
        raise UsageError("expected a model, got none: van explain MODEL IMAGES... --out FOLDER")
    if len(settings.model_and_images) < 2 and not settings.receptive_fields and not settings.faithfulness:
        raise UsageError("expected images after the model, got none; add files, folders or patterns")
