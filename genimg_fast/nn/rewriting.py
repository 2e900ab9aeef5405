"""Methods written anew from their source, so that in them a batch norm may wait for what follows it.

Procedure overview. Of a method's syntax tree every call ``f(x)`` becomes ``call(waiting, f, x)``, every addition
``add(...)``, and so on with the functions of :mod:`genimg_fast.nn.pending`. What they return may be a
:class:`~genimg_fast.nn.pending.Pending` value. Such a value gets no further than to a name, an argument of
``call``, an operand of ``add`` or the method's result: wherever else an expression stands, ``done`` around it
makes a tensor of it. Before every statement whose effects nobody can see from here (``with``, ``try``, a call
whose result is dropped, an assignment to something else than a name), all that waits is settled.

Conditions, loops and whatever looks at data stay as written: nothing is traced.
"""

from __future__ import annotations

import ast
import builtins
import copy
import copyreg
import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx
from torch import nn

from genimg_fast.nn import pending, roles
from genimg_fast.nn.sequential import Sequential
from genimg_fast.nn.stands_for import copy_layer

_WAITING, _CALL, _METHOD = "_gf_waiting", "_gf_call", "_gf_method"
_HELPERS: dict[str, Callable[..., Any]] = {
    _CALL: pending.call,
    _METHOD: pending.method,
    "_gf_add": pending.add,
    "_gf_add_in_place": pending.add_in_place,
    "_gf_change": pending.change,
    "_gf_done": pending.done,
    "_gf_keep": pending.keep,
    "_gf_leave": pending.leave,
    "_gf_settle": pending.settle,
}
_NO_TYPES: dict[str, Any] = {"returns": None, "type_comment": None}
if sys.version_info >= (3, 12):
    _NO_TYPES["type_params"] = []
_REFUSED = (ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFunctionDef, ast.Match, ast.ClassDef)
_BUILTINS = set(dir(builtins))
_STATISTICS = {"running_mean", "running_var", "num_batches_tracked", "state_dict", "buffers", "named_buffers"}
# These look at the names of the function that calls them, or at its frame.
_LOOK_AT_NAMES = {"locals", "vars", "dir", "eval", "exec", "globals"}


class NotRewritableError(Exception):
    """A method cannot be written anew; the message says why."""


def rewrite(function: Any, owner: type) -> Callable[..., Any]:
    """Write a method anew.

    Args:
        function: The method, as a class holds it.
        owner: The class that has it in its body: what ``super()`` begins at.

    Returns:
        A function of the same arguments. It may return a pending value.

    Raises:
        NotRewritableError: If it is no plain function, if its source is not at hand or is not what runs, or if it
            holds something that does not allow it.
    """
    tree = _tree(function)
    outer = ast.FunctionDef(
        name="_gf_outer",
        args=_arguments([*_HELPERS, "__class__", *(n for n in function.__code__.co_freevars if n != "__class__")]),
        body=[_rewritten(tree), ast.Return(ast.Name(tree.name, ast.Load()))],
        decorator_list=[],
        **_NO_TYPES,
    )
    module = ast.fix_missing_locations(ast.Module([outer], []))
    code = next(
        constant
        for constant in _compiled(module, function).co_consts
        if isinstance(constant, types.CodeType) and constant.co_name == "_gf_outer"
    )
    code = next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == tree.name)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells.setdefault("__class__", types.CellType(owner))
    cells |= {name: types.CellType(helper) for name, helper in _HELPERS.items()}
    rewritten = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__,
        tuple(cells[name] for name in code.co_freevars),
    )  # fmt: skip
    rewritten.__qualname__ = function.__qualname__
    rewritten.__kwdefaults__ = {**(function.__kwdefaults__ or {}), pending.AROUND: ()}
    return functools.wraps(function)(rewritten)


def attributes_of_self(function: Any) -> set[str]:
    """Get the names of the attributes of ``self`` that a method of known source reads."""
    tree = _tree(function)
    this = next((argument.arg for argument in tree.args.posonlyargs + tree.args.args), None)
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == this
    }


def _tree(function: Any) -> ast.FunctionDef:
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        raise NotRewritableError("it is wrapped in something, or is no function of Python")
    try:
        file = "".join(inspect.findsource(function)[0])
        lines, first = inspect.getsourcelines(function)
        # Not dedented: that would change strings of several lines.
        block = ast.parse(
            "".join(["if True:\n", *lines] if lines[0][:1].isspace() else ["if True: pass\n", *lines])
        )
    except (OSError, TypeError, SyntaxError, IndexError):
        raise NotRewritableError("its source is not at hand") from None
    ast.increment_lineno(block, first - 2)
    tree: Any = block.body[1] if len(block.body) > 1 else block.body[0].body[0]  # type: ignore[attr-defined]
    if not isinstance(tree, ast.FunctionDef):
        raise NotRewritableError("it is no plain function")
    if tree.decorator_list:
        raise NotRewritableError("it is decorated")
    running = function.__code__
    if not any(c.co_firstlineno == running.co_firstlineno and _same_code(running, c) for c in _codes_of(file)):
        raise NotRewritableError("its source is not what is running")
    return tree


def _arguments(names: list[str]) -> ast.arguments:
    return ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, [])


def _compiled(module: ast.Module, function: Any) -> types.CodeType:
    flags = function.__code__.co_flags & 0x1FF0000  # what the file imports from __future__
    code: types.CodeType = compile(module, inspect.getfile(function), "exec", flags=flags, dont_inherit=True)
    return code


@functools.lru_cache(maxsize=64)
def _codes_of(file: str) -> list[types.CodeType]:
    """Compile the source of a whole file: what a function becomes depends on what the file imports."""
    try:
        return list(_codes(compile(file, "source", "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):
        return []


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _same_code(one: types.CodeType, other: types.CodeType) -> bool:
    """Tell whether two codes do the same, wherever their lines are."""
    if (one.co_name, one.co_names, one.co_varnames, set(one.co_freevars)) != (
        other.co_name, other.co_names, other.co_varnames, set(other.co_freevars),
    ) or one.co_code != other.co_code or len(one.co_consts) != len(other.co_consts):  # fmt: skip
        return False
    return all(
        _same_code(a, b) if isinstance(a, types.CodeType) and isinstance(b, types.CodeType) else repr(a) == repr(b)
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


def _rewritten(
    tree: ast.FunctionDef, *, nested: bool = False, outside: frozenset[str] = frozenset()
) -> ast.FunctionDef:
    """Write a function definition anew; ``outside`` are names around it that may hold a pending value."""
    for node in ast.walk(tree):
        if isinstance(node, _REFUSED):
            raise NotRewritableError(f"it has a {type(node).__name__.lower()} in it")
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            raise NotRewritableError("it assigns to names from outside")
        if isinstance(node, ast.Name) and node.id in _LOOK_AT_NAMES:
            raise NotRewritableError(f"it calls {node.id}()")
        names = [getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "arg", "")]
        if any(isinstance(n, str) and n.startswith("__") and not n.endswith("__") for n in names):
            raise NotRewritableError("it has names that begin with two underscores")
    writer = _Writer(_names_that_wait(tree.body) | outside, nested=nested)
    documented = ast.get_docstring(tree, clean=False) is not None
    written = writer.block(tree.body[documented:], None)
    # Whatever leaves the method, an error too, all norms that were called have run.
    around: list[ast.expr] = [] if nested else [ast.Starred(_around(), ast.Load())]
    body: list[ast.stmt] = [
        *tree.body[:documented],
        ast.Assign([ast.Name(_WAITING, ast.Store())], ast.List(around, ast.Load())),
        ast.Try([*written, ast.Pass()], [], [], [writer.settle()]),
    ]
    arguments = _without_annotations(tree.args)
    if not nested:
        arguments.kwonlyargs.append(ast.arg(pending.AROUND))
        arguments.kw_defaults = [*arguments.kw_defaults, None]
    copied = ast.FunctionDef(tree.name, arguments, body, tree.decorator_list, **_NO_TYPES)
    return ast.copy_location(copied, tree)


def _without_annotations(args: ast.arguments) -> ast.arguments:
    """Copy the list of arguments; annotations would be evaluated, and may name what is not there."""

    def bare(arg: ast.arg | None) -> ast.arg | None:
        return None if arg is None else ast.copy_location(ast.arg(arg.arg), arg)

    return ast.arguments(
        [bare(a) for a in args.posonlyargs], [bare(a) for a in args.args], bare(args.vararg),  # type: ignore[misc]
        [bare(a) for a in args.kwonlyargs], args.kw_defaults, bare(args.kwarg), args.defaults,  # type: ignore[misc]
    )  # fmt: skip


def _names_that_wait(body: list[ast.stmt]) -> frozenset[str]:
    """Find the names that may hold a pending value: those that the result of a call, or of a sum, is given."""
    names: frozenset[str] = frozenset()
    while True:
        found = set(names)
        for statement in body:
            for node in ast.walk(statement):
                value: ast.expr | None = None
                if isinstance(node, ast.Assign) and len(node.targets) == 1:
                    target, value = node.targets[0], node.value
                elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
                    target, value = node.target, node.value
                if value is not None and isinstance(target, ast.Name) and _may_wait(value, names):
                    found.add(target.id)
        if found == names:
            return names
        names = frozenset(found)


def _may_wait(node: ast.expr, names: frozenset[str]) -> bool:
    """Tell whether an expression may have a pending value."""
    match node:
        case ast.Call():
            return not (isinstance(node.func, ast.Name) and node.func.id in _BUILTINS)
        case ast.Name():
            return node.id in names
        case ast.BinOp(op=ast.Add()):
            return _may_wait(node.left, names) or _may_wait(node.right, names)
        case ast.IfExp():
            return _may_wait(node.body, names) or _may_wait(node.orelse, names)
    return False


def _helper(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _waiting() -> ast.Name:
    return ast.Name(_WAITING, ast.Load())


def _around() -> ast.Name:
    return ast.Name(pending.AROUND, ast.Load())


def _may_read_statistics(node: ast.AST) -> bool:
    match node:
        case ast.Attribute():
            return node.attr in _STATISTICS
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=name), *_]):
            return name in _STATISTICS
        case ast.Call(func=ast.Name(id="getattr")):
            return True
    return False


def _reads(statement: ast.stmt | None, name: str) -> bool:
    return statement is not None and any(
        isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
        for node in ast.walk(statement)
    )


class _Writer:
    """Writes statements and expressions anew.

    Args:
        names: Names that may hold a pending value.
        nested: Whether this is a function in another one, whose result nobody expects to be pending.
    """

    def __init__(self, names: frozenset[str], *, nested: bool) -> None:
        self.names, self.nested = names, nested
        self.guarded = 0  # how many with and try statements are around

    def block(self, statements: list[ast.stmt], after: ast.stmt | None) -> list[ast.stmt]:
        """Write statements anew; ``after`` is what runs behind the last one, if that is known."""
        written: list[ast.stmt] = []
        following = [*statements[1:], after]
        for statement, next_one in zip(statements, following, strict=False):
            if any(_may_read_statistics(node) for node in ast.walk(statement)):
                written.append(ast.copy_location(self.settle(), statement))
            written += [ast.copy_location(new, statement) for new in self.statement(statement, next_one)]
        return written

    def statement(self, node: ast.stmt, after: ast.stmt | None) -> list[ast.stmt]:
        match node:
            case ast.Assign(targets=[ast.Name() as target]):
                return [ast.Assign([target], self.named(target, node.value, after))]
            case ast.AnnAssign(target=ast.Name() as target, value=ast.expr() as value):
                return [ast.Assign([target], self.named(target, value, after))]
            case ast.AnnAssign(target=ast.Name(), value=None):
                return []  # an annotation alone
            case ast.AugAssign(target=ast.Name() as target, op=ast.Add()) if target.id in self.names or _may_wait(
                node.value, self.names
            ):
                load = ast.Name(target.id, ast.Load())
                total: ast.expr = _helper("_gf_add_in_place", _waiting(), load, self.expression(node.value, True))
                if not self.sum_may_wait(target, after):
                    total = _helper("_gf_done", total)
                return [ast.Assign([target], total)]
            case ast.Return():
                value = ast.Constant(None) if node.value is None else node.value
                result = self.expression(value, not (self.guarded or self.nested))
                around = [] if self.nested else [_around()]
                return [ast.Return(_helper("_gf_leave", _waiting(), result, *around))]
            case ast.If():
                return [
                    ast.If(
                        self.expression(node.test), self.block(node.body, after), self.block(node.orelse, after)
                    )
                ]
            case ast.While():
                return [
                    ast.While(
                        self.expression(node.test), self.block(node.body, None), self.block(node.orelse, after)
                    )
                ]
            case ast.For():
                return [
                    ast.For(
                        self.target(node.target), self.expression(node.iter), self.block(node.body, None),
                        self.block(node.orelse, after), None,
                    )
                ]  # fmt: skip
            case ast.With():
                items = [
                    ast.withitem(self.expression(i.context_expr), i.optional_vars and self.target(i.optional_vars))
                    for i in node.items
                ]
                return [self.settle(), ast.With(items, self.guard(node.body), None)]
            case ast.Try():
                handlers = [
                    ast.ExceptHandler(h.type and self.expression(h.type), h.name, self.guard(h.body))
                    for h in node.handlers
                ]
                return [
                    self.settle(),
                    ast.Try(self.guard(node.body), handlers, self.guard(node.orelse), self.guard(node.finalbody)),
                ]
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="relu_"))) if (
                name in self.names
            ):
                return [ast.Expr(self.expression(node.value, True))]
            case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.Break() | ast.Continue() | ast.Import():
                return [node]
            case ast.ImportFrom():
                return [node]
            case ast.FunctionDef():
                inner = _rewritten(node, nested=True, outside=self.names)
                inner.decorator_list = [self.expression(d) for d in node.decorator_list]
                inner.args = self.arguments(inner.args)
                return [inner]
        before: list[ast.stmt] = [self.settle()]
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            load = ast.Name(node.target.id, ast.Load())
            before.append(ast.Assign([node.target], self.expression(load)))
        return [*before, self.generic(node)]

    def named(self, target: ast.Name, value: ast.expr, after: ast.stmt | None) -> ast.expr:
        """Write the value of a name."""
        if self.guarded or target.id not in self.names:
            return self.expression(value)
        is_sum = isinstance(value, ast.BinOp) or (
            isinstance(value, ast.Call)
            and getattr(value.func, "attr", getattr(value.func, "id", "")) in ("add", "add_")
        )
        written = self.expression(value, not is_sum or self.sum_may_wait(target, after))
        if self.is_gone_with(target, after) or not _may_wait(value, self.names):
            return written
        return _helper("_gf_keep", written)

    def is_gone_with(self, target: ast.Name, after: ast.stmt | None) -> bool:
        """Tell whether the next statement reads a name once, and nobody after it: it gives it another value."""
        match after:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name == target.id:
                return sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(value)) == 1
            case ast.Return(value=ast.expr() as value):
                return sum(isinstance(n, ast.Name) and n.id == target.id for n in ast.walk(value)) == 1
        return False

    def sum_may_wait(self, target: ast.Name, after: ast.stmt | None) -> bool:
        """Tell whether a sum may wait: what was added must not change before, so for the next statement only."""
        return not self.guarded and _reads(after, target.id)

    def guard(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Write statements in which grad mode or autocast may be others, or errors are caught: no name waits."""
        self.guarded += 1
        try:
            return self.block(statements, None)
        finally:
            self.guarded -= 1

    def settle(self) -> ast.stmt:
        return ast.Expr(_helper("_gf_settle", _waiting()))

    def target(self, node: ast.expr) -> ast.expr:
        """Write what is assigned to: names stay, what is below others is read."""
        return node if isinstance(node, ast.Name) else self.generic(node)

    def expression(self, node: ast.expr, keep: bool = False) -> ast.expr:
        """Write an expression anew; with ``keep`` its value may be pending."""
        written = self.kept(node)
        if not keep and _may_wait(node, self.names):
            written = _helper("_gf_done", written)
        return ast.copy_location(written, node)

    def kept(self, node: ast.expr) -> ast.expr:
        match node:
            case ast.Call(func=ast.Name(id="super"), args=[]):
                return node
            case ast.Call(func=ast.Name(id=name)) if name in _BUILTINS:
                return self.generic(node)
            case ast.Call():
                # A list of arguments takes no pending value: it is a tuple before anybody looks.
                arguments = [self.expression(a, not isinstance(a, ast.Starred)) for a in node.args]
                keywords = [ast.keyword(k.arg, self.expression(k.value)) for k in node.keywords]
                if isinstance(node.func, ast.Attribute) and _may_wait(node.func.value, self.names):
                    of = self.expression(node.func.value, True)
                    first: list[ast.expr] = [_waiting(), of, ast.Constant(node.func.attr)]
                    return ast.Call(ast.Name(_METHOD, ast.Load()), first + arguments, keywords)
                function = self.expression(node.func)
                name = getattr(node.func, "attr", "")
                # torch.relu_(x) is looked at where it is called; x.relu_(), x being no pending value, is not.
                in_place = name.endswith("_") and not (name in ("relu_", "leaky_relu_") and node.args)
                helper = "_gf_change" if in_place and not name.endswith("__") else _CALL
                return ast.Call(ast.Name(helper, ast.Load()), [_waiting(), function, *arguments], keywords)
            case ast.BinOp(op=ast.Add()) if _may_wait(node, self.names):
                sides = self.expression(node.left, True), self.expression(node.right, True)
                return _helper("_gf_add", _waiting(), *sides)
            case ast.IfExp():
                sides = self.expression(node.body, True), self.expression(node.orelse, True)
                return ast.IfExp(self.expression(node.test), *sides)
            case ast.Name():
                return node
            case ast.Lambda():
                inner = _Writer(self.names, nested=True)
                inner.guarded = 1
                return ast.Lambda(self.arguments(node.args), inner.alone(node.body))
        return self.generic(node)

    def alone(self, node: ast.expr) -> ast.expr:
        """Write an expression with a list of its own for what waits in it: it may run when the frame is gone."""
        written = self.expression(node)
        nobody = ast.arguments([], [ast.arg(_WAITING)], None, [], [], None, [])
        return ast.Call(ast.Lambda(nobody, written), [ast.List([], ast.Load())], [])

    def arguments(self, node: ast.arguments) -> ast.arguments:
        """Write the defaults of arguments anew."""
        return ast.arguments(
            node.posonlyargs, node.args, node.vararg, node.kwonlyargs,
            [d and self.expression(d) for d in node.kw_defaults], node.kwarg,
            [self.expression(d) for d in node.defaults],
        )  # fmt: skip

    def generic(self, node: Any) -> Any:
        """Write a node with all expressions below it as tensors."""
        fields: dict[str, Any] = {}
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                stored = isinstance(getattr(value, "ctx", None), (ast.Store, ast.Del))
                fields[name] = self.target(value) if stored else self.expression(value)
            elif isinstance(value, list):
                fields[name] = [self._item(item) for item in value]
            elif isinstance(value, ast.AST) and not isinstance(
                value, (ast.expr_context, ast.operator, ast.unaryop, ast.boolop)
            ):
                fields[name] = self.generic(value)
            else:
                fields[name] = value
        return ast.copy_location(type(node)(**fields), node)

    def _item(self, item: Any) -> Any:
        if isinstance(item, ast.expr):
            stored = isinstance(getattr(item, "ctx", None), (ast.Store, ast.Del))
            return self.target(item) if stored else self.expression(item)
        if isinstance(item, (ast.cmpop, ast.expr_context)) or not isinstance(item, ast.AST):
            return item
        return self.generic(item)


_Class = type[nn.Module]
_FUSED: weakref.WeakKeyDictionary[_Class, weakref.ref[_Class]] = weakref.WeakKeyDictionary()
_REASONS: weakref.WeakKeyDictionary[_Class, str] = weakref.WeakKeyDictionary()


def fused_class(cls: _Class) -> _Class:
    """Get the class of the same layers whose methods are written anew.

    Args:
        cls: A class of layers that call others.

    Returns:
        A class derived from it, of the same name. It adds no state, so an instance may change between the two.

    Raises:
        NotRewritableError: If its ``forward`` cannot be written anew, or the class does not allow it.
    """
    if cls in _REASONS:
        raise NotRewritableError(_REASONS[cls])
    fused: Any = _FUSED[cls]() if cls in _FUSED else None
    if fused is None or any(vars(owner).get(name) is not f for (owner, name), f in fused._gf_written.items()):
        try:
            fused = _derive(cls)
        except NotRewritableError as error:
            _REASONS[cls] = str(error)
            raise
        _FUSED[cls] = weakref.ref(fused)
    return fused


def plain_class(cls: Any) -> Any:
    """Get the class that :func:`fused_class` was given, or the class itself."""
    return cls.__dict__.get("_gf_plain", cls)


def _derive(cls: Any) -> Any:
    if any(
        "__init_subclass__" in vars(base) for base in cls.__mro__ if base.__module__ not in ("builtins", "typing")
    ):
        raise NotRewritableError("its class has an __init_subclass__")
    # Not __init__, which ran when the object was of its own class, and not torch's: Sequential's slices are of it.
    attributes = [
        f
        for base in cls.__mro__
        if base is not object and not base.__module__.startswith("torch.nn.")
        for name, f in vars(base).items()
        if name != "__init__"
    ]
    if asking := [f.__name__ for f in attributes if isinstance(f, types.FunctionType) and _asks_for_class(f)]:
        raise NotRewritableError(f"its class is asked for in {asking[0]}")
    new = inspect.signature(cls.__new__).parameters.values() if cls.__new__ is not object.__new__ else ()
    if any(p.default is p.empty and p.kind < p.VAR_POSITIONAL for p in list(new)[1:]):
        raise NotRewritableError("its class has a __new__ that takes arguments")
    if "__slots__" in cls.__dict__ or "__reduce__" in _own_names(cls) or "__reduce_ex__" in _own_names(cls):
        raise NotRewritableError("its class has __slots__, or pickles in a way of its own")
    if cls.forward is nn.Sequential.forward:
        methods: dict[str, Any] = {"forward": Sequential.forward, "_gf_written": {}}
    else:
        methods = _methods(cls)
    names: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_gf_plain": cls,
        "__prepare_scriptable__": _as_plain,
    }
    own = _own_names(cls)
    names |= {name: f for name, f in (("__copy__", _copied), ("__deepcopy__", _deep_copied)) if name not in own}
    try:
        fused = type(cls)(cls.__name__, (cls,), names | methods)
    except Exception as error:  # whatever a metaclass raises
        raise NotRewritableError(f"no class can be derived from its: {error}") from None
    fused.__reduce_ex__ = functools.partialmethod(_reduce_as_plain, fused)
    return fused


def _asks_for_class(function: Any) -> bool:
    """Whether a method looks at the class of its object, of which the derived one would be another."""
    names = function.__code__.co_names
    if "__class__" in names:
        return True
    if "type" not in names or not function.__code__.co_varnames:
        return False
    try:
        tree = _tree(function)
    except NotRewritableError:
        return True
    this = function.__code__.co_varnames[0]
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "type"
        and any(isinstance(a, ast.Name) and a.id == this for a in node.args)
        for node in ast.walk(tree)
    )


def _own_names(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if base not in (object, nn.Module) for name in vars(base)}


def _methods(cls: Any) -> dict[str, Any]:
    """Write ``forward``, and the methods that it leads to, anew."""
    written: dict[str, Any] = {}
    above: dict[Any, Callable[..., Any]] = {}  # what super() leads to, by the functions as written
    sources: dict[tuple[type, str], Any] = {}
    names = ["forward"]
    while names:
        name = names.pop()
        owners = [base for base in cls.__mro__ if base not in (nn.Module, object) and name in vars(base)]
        for owner in owners if name not in written else ():
            function = vars(owner)[name]
            try:
                waiting = rewrite(function, owner)
            except NotRewritableError:
                if name == "forward" and owner is owners[0]:
                    raise
                break  # called as it is
            sources[owner, name] = function
            if owner is owners[0]:
                written[name] = _entry(function, waiting)
            else:
                above[function] = waiting
            names += sorted(attributes_of_self(function))
            if "super" not in function.__code__.co_names:
                break
    return {**written, "_gf_above": above, "_gf_written": sources}


def _entry(plain: Any, waiting: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method that may be called from anywhere: programs that are being recorded get what was written."""
    tracing, exporting = torch._C._get_tracing_state, torch.compiler.is_exporting
    proxy = torch.fx.Proxy

    @functools.wraps(plain)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorded = tracing() or exporting()
        for argument in (*args, *kwargs.values()):
            recorded = recorded or isinstance(argument, proxy)
        if recorded:
            return plain(self, *args, **kwargs)
        return pending.done(waiting(self, *args, **kwargs))

    roles.waits_with(method, waiting)
    return method


def _reduce_as_plain(self: Any, fused: Any, protocol: Any) -> Any:
    """Reduce a layer to one of the class that its own is derived from, without a name of this package."""
    recipe = super(fused, self).__reduce_ex__(protocol)
    if type(self) is not fused or recipe[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
        return recipe
    # Not by __newobj__, which pickle allows for an object's own class only.
    plain = plain_class(fused)
    return (copyreg._reconstructor, (plain, object, None), *recipe[2:])  # type: ignore[attr-defined]


def _as_plain(self: Any) -> Any:
    """Give TorchScript, which compiles source, a layer of the class that has it."""
    twin = object.__new__(plain_class(type(self)))
    twin.__dict__.update(self.__dict__)
    return twin


def _copied(self: Any) -> Any:
    return copy_layer(self, lambda state: state, {})


def _deep_copied(self: Any, memo: dict[int, Any]) -> Any:
    return copy_layer(self, lambda state: copy.deepcopy(state, memo), memo)
