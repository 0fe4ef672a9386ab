"""Keeps PyTorch and Transformers from importing, at the start, modules that a model on one rank never uses.

Both import a compiler (`torch._dynamo`), distributed tensors, training checkpoints and more, which takes longer than
everything that is needed. While `deferring` is active, such a module is replaced by a stand-in, and each name imported
from it by a promise; the first real use imports the module. Behaviour cannot change, except for modules that are
imported for their side effects. There is one of those (`_EFFECTS`), which has its own rule.
"""

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any, ClassVar

ON_ONE_RANK = (
    "accelerate",
    "torch._dynamo",
    "torch._export",
    "torch._inductor",
    "torch._meta_registrations",
    "torch.distributed._composable",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.export",
    "torch.nn.attention.flex_attention",
    "torch.onnx",
    "triton",
)
"""Modules, with their submodules, that a model neither split nor compiled does not need."""

ON_CPU = ("cuda.bindings",)
"""Modules that are useless without a GPU."""

_lock = threading.RLock()

_EFFECTS = "torch._meta_registrations"
"""Registers the result shapes of some operations with PyTorch, which only tensors without data need. It is imported
before a module that works with such tensors (`_NEEDS_EFFECTS`), or by `import_effects`."""

_IMPORTED_WITH_EFFECTS = ("torch._decomp", "torch._prims", "torch._refs")
"""Modules that `_EFFECTS` would import, and that some functions of PyTorch assume to be imported."""

_NEEDS_EFFECTS = (
    *("torch._dynamo", "torch._export", "torch._functorch.aot_autograd", "torch._inductor", "torch.distributed.tensor"),
    *("torch.export", "torch.fx.experimental.symbolic_shapes"),
)

_DECORATORS = frozenset(("torch._dynamo", name) for name in ("allow_in_graph", "assume_constant_result", "disable"))
"""Decorators that matter only to code that is being compiled, and that are applied while modules are imported."""

_VALUES = frozenset(("torch.distributed.tensor", name) for name in ("Partial", "Replicate", "Shard"))
"""Classes of plain, truthy values of which some are made while modules are imported."""


def import_effects() -> bool:
    """Imports `_EFFECTS` if it was deferred. Returns False when there was nothing to import."""
    with _lock:
        if not _EffectsFinder.installed:
            return False
        sys.meta_path.remove(_EffectsFinder.installed.pop())
        importlib.import_module(_EFFECTS)
        return True


def give_up() -> bool:
    """Ends all deferring and imports `_EFFECTS` too, for the case that deferring caused an error. Returns False when
    nothing was deferred."""
    with _lock:
        active = [finder for finder in sys.meta_path if isinstance(finder, _Finder)]
        for finder in active:
            finder.stop()
        return import_effects() or bool(active)


@contextmanager
def deferring(names: Sequence[str]) -> Iterator[None]:
    """Defers imports of these modules and their submodules, for the duration of a `with` block, until one is used.

    Modules that are already imported stay as they are. Once one deferred module is imported, all deferring ends.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        finder.stop()


class _EffectsFinder:
    """Imports `_EFFECTS` before any module that needs it."""

    installed: ClassVar[list["_EffectsFinder"]] = []

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name in _NEEDS_EFFECTS:
            import_effects()


class _Finder(Loader):
    """Finds stand-ins for the deferred modules."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._roots: dict[str, bool] = {}
        self.stopped = False

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if not any(name == each or name.startswith(f"{each}.") for each in self._names):
            return None
        root = name.partition(".")[0]
        if root not in self._roots:
            self._roots[root] = root in sys.modules or PathFinder.find_spec(root) is not None
        # A package that is not installed must still be missing.
        return ModuleSpec(name, self, is_package=True) if self._roots[root] else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Runs nothing, except that `_EFFECTS` gets a finder that imports it in time."""
        if module.__name__ != _EFFECTS:
            return
        _EffectsFinder.installed.append(_EffectsFinder())
        sys.meta_path.insert(sys.meta_path.index(self) + 1, _EffectsFinder.installed[-1])
        for name in _IMPORTED_WITH_EFFECTS:
            parent, _, child = name.rpartition(".")
            vars(sys.modules[parent]).setdefault(child, _OnDemand(name))

    def stop(self) -> None:
        """Ends deferring: from now on everything is imported for real. Promises stay valid."""
        if self.stopped:
            return
        self.stopped = True
        sys.meta_path.remove(self)
        for name, module in list(sys.modules.items()):
            if type(module) is _StandIn and module._finder is self:
                del sys.modules[name]
                parent, _, child = name.rpartition(".")
                if parent in sys.modules and vars(sys.modules[parent]).get(child) is module:
                    delattr(sys.modules[parent], child)


class _OnDemand(ModuleType):
    """A module that is imported when one of its attributes is read."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return getattr(importlib.import_module(self.__name__), name)


class _StandIn(ModuleType):
    """Replacement for a module that has not been imported."""

    _finder: _Finder

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self.__dict__["_finder"] = finder

    def __getattr__(self, name: str) -> Any:
        # Tools read these attributes of every module.
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        if name == "__all__" or self._finder.stopped:
            return getattr(self._real(), name)
        if (self.__name__, name) in _DECORATORS:
            return functools.partial(_decorate, self, name)
        return Promise(self, name)

    def _real(self) -> ModuleType:
        """Imports the real module."""
        with _lock:
            self._finder.stop()
            module = importlib.import_module(self.__name__)
            _replace_promises(self, module)
            return module


def _replace_promises(stand_in: _StandIn, module: ModuleType) -> None:
    """Replaces promises in all modules by the real objects, so that comparisons by identity are right again."""
    if stand_in.__dict__.get("_fulfilled"):
        return
    stand_in.__dict__["_fulfilled"] = True
    for each in list(sys.modules.values()):
        for name, value in list(getattr(each, "__dict__", {}).items()):
            if type(value) is Promise and value._module is stand_in and value._make is None:
                each.__dict__[name] = value.resolve()


def _decorate(module: _StandIn, name: str, function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Applies the real decorator at the first call after the decorator's module was imported."""
    if function is None:
        return lambda function: _decorate(module, name, function, *args, **kwargs)
    if not isinstance(function, FunctionType):
        return getattr(module._real(), name)(function, *args, **kwargs)
    decorated: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*call_args: Any, **call_kwargs: Any) -> Any:
        if not decorated:
            found = sys.modules.get(module.__name__)
            if found is None or type(found) is _StandIn:
                return function(*call_args, **call_kwargs)
            decorated.append(getattr(found, name)(function, *args, **kwargs))
        return decorated[0](*call_args, **call_kwargs)

    return call


class Promise:
    """Replacement for a name imported from a deferred module; every use resolves it to the real object."""

    __slots__ = ("_make", "_module", "_name")

    def __init__(self, module: _StandIn, name: str, make: Callable[[], Any] | None = None) -> None:
        """make: makes the real object, when that is not the module's attribute but a value made from it."""
        self._module, self._name, self._make = module, name, make

    def resolve(self) -> Any:
        """The real object. Raises AttributeError when the module has no such name."""
        if self._make is not None:
            return self._make()
        module = self._module._real()
        try:
            return getattr(module, self._name)
        except AttributeError:
            return importlib.import_module(f"{module.__name__}.{self._name}")

    def _is_real(self) -> bool:
        module = sys.modules.get(self._module.__name__)
        return module is not None and type(module) is not _StandIn

    def __instancecheck__(self, instance: object) -> bool:
        # A class of a module that was never imported has no instances.
        return self._is_real() and isinstance(instance, self.resolve())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._is_real() and issubclass(subclass, self.resolve())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.resolve(),)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.resolve(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._make is None and not self._is_real() and (self._module.__name__, self._name) in _VALUES:
            return Promise(self._module, self._name, functools.cache(lambda: self.resolve()(*args, **kwargs)))
        return self.resolve()(*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self.resolve()[key]

    def __bool__(self) -> bool:
        return self._make is not None or bool(self.resolve())

    def __or__(self, other: Any) -> Any:
        return Any  # in annotations

    __ror__ = __or__


def _forward(operator: str) -> Callable[..., Any]:
    def apply(promise: Promise, *args: Any) -> Any:
        return getattr(promise.resolve(), operator)(*args)

    return apply


# Operators are looked up on the class, not by __getattr__. Equality keeps its default: resolving a promise to compare
# it could start an import in the middle of another import.
for _operator in (
    *("__len__", "__iter__", "__contains__", "__enter__", "__exit__", "__index__", "__int__", "__float__"),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__floordiv__", "__rfloordiv__"),
    *("__truediv__", "__rtruediv__", "__mod__", "__rmod__", "__lt__", "__le__", "__gt__", "__ge__"),
):
    setattr(Promise, _operator, _forward(_operator))
