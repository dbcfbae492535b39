"""Export of checkpoints to other runtimes; each format module has the writer and the session that reads its files."""

from van.callable_module import make_callable

make_callable(__name__)  # van.export(...) is van.api.export
