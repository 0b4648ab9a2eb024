"""What Dynamo, which traces a function for `torch.compile`, is told of ours; without importing it.

That takes a second, for which who compiles nothing need not wait.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch._compile import _disable_dynamo

_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant(function: _Function) -> _Function:
    """Its result, of arguments that are constants, is one too, and found while tracing.

    As `torch.compiler.assume_constant_result`.
    """
    # Dynamo writes the result into the globals of the frame that it traces, by the name in the code; and the
    # function itself may be there.
    code = function.__code__
    function.__code__ = code.replace(co_name=f"__orchard_jit_{code.co_name}")
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def left_out(reason: str) -> Callable[[_Function], _Function]:
    """No graph holds its calls, nor what they call. As `torch.compiler.disable`."""

    def decorate(function: _Function) -> _Function:
        disabled = _disable_dynamo(function)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if "torch._dynamo" in sys.modules:  # else there is nobody to be told
                return disabled(*args, **kwargs)
            return function(*args, **kwargs)

        run._torchdynamo_disable = True  # type: ignore[attr-defined]
        run._torchdynamo_disable_msg = reason  # type: ignore[attr-defined]
        return cast(_Function, run)

    return decorate
