"""``van explain MODEL PICTURES... --out FOLDER``: which parts of a picture an answer rests on."""

from collections.abc import Sequence

from van.cli.arguments import parse
from van.cli.explain.settings import ExplainSettings
from van.errors import UsageError


def run(arguments: Sequence[str]) -> int:
    """Look, draw, tell; go on past unreadable pictures, and end with status 1 if there was one."""
    settings = parse(
        ExplainSettings,
        arguments,
        verb="explain",
        description="Draw which parts of a picture an answer rests on: class activation maps over the picture, the "
        "same as numbers (NAME.npy, a value for each pixel), and a sheet of all. Or LKA's own attention, receptive "
        "fields, or how faithful such maps are. Unreadable pictures are named on standard error and give status 1.",
        examples=(
            "van explain runs/digits/best.safetensors digits/val/7 --out why",
            "van explain van_b2 cat.jpg --out why --classes 'tabby' 'Egyptian cat' --method grad-cam layer-cam",
            "van explain runs/apples/best.safetensors tree.jpg --out why --box 10 20 80 90",
            "van explain --compare van_b2 swin_tiny convnext_tiny cat.jpg --out why",
            "van explain van_b0 cat.jpg --out why --lka stage1 stage4 --channels mean",
            "van explain --fields --fresh van_b0 resnet50 convnext_tiny swin_tiny --out fields",
            "van explain runs/digits/best.safetensors --score --data digits --out scores",
        ),
    )
    _check(settings)
    from van.ops import keep_freed_memory

    keep_freed_memory()
    if settings.fields:
        from van.cli.explain.fields import measure

        return measure(settings)
    if settings.score:
        from van.cli.explain.scores import score

        return score(settings)
    if settings.lka is not None:
        from van.cli.explain.gates import draw_gates

        return draw_gates(settings)
    from van.cli.explain.maps import compare, draw_maps

    return compare(settings) if settings.compare else draw_maps(settings)


def _check(settings: ExplainSettings) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    kinds = {"compare": settings.compare, "lka": settings.lka is not None}
    kinds |= {"fields": settings.fields, "score": settings.score}
    chosen = [f"--{name}" for name, given in kinds.items() if given]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other; choose one")
    if settings.out.exists() and not settings.out.is_dir():
        raise UsageError(f"--out {settings.out} is a file; wanted a folder")
    for name in ("top", "batch_size", "size_px", "limit"):
        given = getattr(settings, name)
        if given is not None and given < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {given}; wanted at least 1")
    if settings.score != (settings.data is not None):
        raise UsageError("--score and --data belong together: labelled pictures to measure on; add the other")
    for name, given, owner in (
        ("channels", bool(settings.channels), "lka"),
        ("fresh", settings.fresh, "fields"),
        ("limit", settings.limit is not None, "score"),
    ):
        if given and not kinds[owner]:
            raise UsageError(f"--{name} is for --{owner}, which is not given; add it or leave both out")
    if not settings.words:
        raise UsageError("no model given; wanted van explain MODEL PICTURES... --out FOLDER")
    if len(settings.words) < 2 and not settings.fields and not settings.score:
        raise UsageError("no pictures given; name files, folders or patterns after the model")
