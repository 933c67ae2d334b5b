"""Weight quantizers, one method per file, and the one table that names them.

Each is a module made from a float weight ``[N, K]``: ``codes()`` (integer-valued float32 with its gradient),
``step()`` (real value of a unit, ``[1]`` or ``[N]``), ``latent()`` (the float weight behind), ``codebook`` and
``grid``. The quantized weight is ``quantized() = step * codes``. A new method of the package is a subclass of
``WeightQuantizer`` in a file of its own and a line in each table; the tests run over the tables. One from outside the
package is added by :func:`register` (docs/howto/own-quantizer.md).
"""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

from kwsbench.arithmetic.codebook import Codebook
from kwsbench.quantizers.general import GeneralWeight, HardGeneralWeight, SlowGeneralWeight, general_codebook
from kwsbench.quantizers.linear import LinearWeight, linear_codebook
from kwsbench.quantizers.lsq import LsqWeight
from kwsbench.quantizers.regularized import CosineWeight, S8bWeight
from kwsbench.quantizers.tanh import DorefaWeight, TanhWeight, odd_codebook
from kwsbench.quantizers.weight import HARD_SHARE, WeightQuantizer

QUANTIZERS: dict[str, type[WeightQuantizer]] = {
    "linear": LinearWeight,
    "tanh": TanhWeight,
    "dorefa": DorefaWeight,
    "general": GeneralWeight,
    "general_hard": HardGeneralWeight,
    "general_slow": SlowGeneralWeight,
    "lsq": LsqWeight,
    "cosine": CosineWeight,
    "s8b": S8bWeight,
}
CODEBOOKS: dict[str, Callable[[int], Codebook]] = {
    "linear": linear_codebook,
    "tanh": odd_codebook,
    "dorefa": odd_codebook,
    "general": general_codebook,
    "general_hard": general_codebook,
    "general_slow": general_codebook,
    "lsq": linear_codebook,
    "cosine": odd_codebook,
    "s8b": general_codebook,
}
# SHA-256 of the file of each registered method: part of the identity of what is trained with it.
SOURCES: dict[str, str] = {}


def register(quantizer: type[WeightQuantizer], codebook: Callable[[int], Codebook]) -> None:
    """Add a method from outside the package to the tables, under ``quantizer.method``.

    Args:
        quantizer: made as ``quantizer(weight [N, K], bits, per_channel=False)``.
        codebook: its unit codebook by width, with integer codes; for SQNR and transfer curves without training.

    The same class may be registered again after its file was edited and reloaded. Artifacts depend on the file's
    content, so an edited quantizer is trained anew.

    Raises:
        ValueError: the name is missing or taken, or the class stands in no file.
        TypeError: it is no subclass of ``WeightQuantizer``, or leaves a part of it out.
    """
    if not (isinstance(quantizer, type) and issubclass(quantizer, WeightQuantizer)):
        raise TypeError(f"a quantizer is a subclass of WeightQuantizer, got {quantizer!r}")
    missing = sorted(quantizer.__abstractmethods__)
    if missing:
        raise TypeError(f"{quantizer.__name__} leaves out {', '.join(missing)}")
    method = getattr(quantizer, "method", None)
    if not (isinstance(method, str) and method):
        raise ValueError(f'{quantizer.__name__} needs a name for tables and plans: method = "..."')
    old = QUANTIZERS.get(method)
    if old is not None and (old.__module__, old.__qualname__) != (quantizer.__module__, quantizer.__qualname__):
        raise ValueError(f"the name {method!r} is taken by {old.__module__}.{old.__qualname__}; choose another method")
    try:
        source = Path(inspect.getfile(quantizer)).read_bytes()
    except (TypeError, OSError):
        raise ValueError(
            f"{quantizer.__name__} stands in no file; put it in a .py file and import that, so that what was trained "
            "with it can be told apart once it changes"
        ) from None
    QUANTIZERS[method], CODEBOOKS[method] = quantizer, codebook
    SOURCES[method] = hashlib.sha256(source).hexdigest()


__all__ = [
    "CODEBOOKS",
    "HARD_SHARE",
    "QUANTIZERS",
    "SOURCES",
    "CosineWeight",
    "DorefaWeight",
    "GeneralWeight",
    "HardGeneralWeight",
    "LinearWeight",
    "LsqWeight",
    "S8bWeight",
    "SlowGeneralWeight",
    "TanhWeight",
    "WeightQuantizer",
    "general_codebook",
    "linear_codebook",
    "odd_codebook",
    "register",
]
