"""Weight quantizers, one method per file, and the one table that names them.

Each is a module made from a float weight ``[N, K]``: ``codes()`` (integer-valued float32 with its gradient),
``step()`` (real value of a unit, ``[1]`` or ``[N]``), ``latent()`` (the float weight behind), ``codebook`` and
``grid``. The quantized weight is ``quantized() = step * codes``. A new method is a subclass of ``WeightQuantizer`` in a
file of its own and a line in each table; the tests run over the tables.
"""

from kwsbench.quantizers.linear import LinearWeight, linear_codebook
from kwsbench.quantizers.tanh import DorefaWeight, TanhWeight, odd_codebook
from kwsbench.quantizers.weight import WeightQuantizer

QUANTIZERS: dict[str, type[WeightQuantizer]] = {"linear": LinearWeight, "tanh": TanhWeight, "dorefa": DorefaWeight}
CODEBOOKS = {"linear": linear_codebook, "tanh": odd_codebook, "dorefa": odd_codebook}

__all__ = [
    "CODEBOOKS",
    "QUANTIZERS",
    "DorefaWeight",
    "LinearWeight",
    "TanhWeight",
    "linear_codebook",
    "odd_codebook",
]
