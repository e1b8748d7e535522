"""TSCODE detection heads for Ultralytics YOLO, as a plug-in.

Importing this package arms the plug-in and does nothing else. The wheel's ``.pth`` (and ``.start``, PEP 829) file
imports it at every interpreter start, so it must stay free of heavy imports: the host is touched only when somebody
imports it. ``TSCODE_YOLO_AUTOLOAD=0`` in the environment switches the arming off; `tscode_yolo.register.register`
then plugs in by hand. Public names load on first use.
"""

import os
import sys

__version__ = "0.1.0"

__all__ = ["HeadConfig", "TSCODEDetect", "cfg_path", "from_pretrained", "load_safe"]

_HOMES = {
    "HeadConfig": "config",
    "TSCODEDetect": "head",
    "cfg_path": "shipped",
    "from_pretrained": "safe.hub",
    "load_safe": "safe.unpack",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    home = f"{__name__}.{_HOMES[name]}"
    __import__(home)
    return getattr(sys.modules[home], name)


def __dir__() -> list:
    return sorted({*globals(), *__all__})


class _ImportHook:
    """Calls us right after one of the host modules that `tscode_yolo.register` patches has been executed."""

    watched = (
        "ultralytics.nn.tasks",
        "ultralytics.nn.distill_model",
        "ultralytics.data.utils",
        "ultralytics.models.yolo.detect.train",
    )

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):  # type: ignore[no-untyped-def]  # signature is importlib's
        """Find the module as everybody else would, and add our call to the end of its execution."""
        if fullname not in cls.watched:
            return None
        found = (f.find_spec(fullname, path, target) for f in list(sys.meta_path) if f is not cls)
        spec = next((s for s in found if s is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):  # type: ignore[no-untyped-def]
                execute(module)
                _plug_in("patch", fullname)

            spec.loader.exec_module = execute_and_register
        return spec


def _plug_in(function: str, *args: str) -> None:
    """Call a function of `tscode_yolo.register`; a failure must leave Python and the host usable, so it only warns."""
    try:
        from tscode_yolo import register

        getattr(register, function)(*args)
    except Exception as e:
        import warnings

        warnings.warn(
            f"tscode_yolo {__version__} could not plug itself into Ultralytics ({type(e).__name__}: {e}). Stock models "
            "are not affected; run `tscode doctor` for the cause, or set TSCODE_YOLO_AUTOLOAD=0 to silence this.",
            RuntimeWarning,
            stacklevel=2,
        )


def watch(on: bool) -> None:
    """Start or stop patching host modules as they are imported."""
    hook: object = _ImportHook  # a class serves as its own finder
    if on and hook not in sys.meta_path:
        sys.meta_path.insert(0, hook)  # type: ignore[arg-type]
    elif not on and hook in sys.meta_path:
        sys.meta_path.remove(hook)  # type: ignore[arg-type]


def arm() -> None:
    """Register now if the host is loaded already, else when it is; does nothing with TSCODE_YOLO_AUTOLOAD=0."""
    if os.environ.get("TSCODE_YOLO_AUTOLOAD", "1") == "0":
        return
    watch(True)
    if any(name in sys.modules for name in _ImportHook.watched):
        _plug_in("register")


arm()
