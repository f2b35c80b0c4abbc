"""Shapes used everywhere, in the words of the glossary."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

TokenIds = Int[Tensor, "batch length"]
TokenMask = Bool[Tensor, "batch length"]
FlatIndex = Int[Tensor, " rows"]
Rows = Float[Tensor, "rows vocab"]
HiddenStates = Float[Tensor, "batch length hidden"]
PerToken = Float[Tensor, "batch length"]
PerRow = Int[Tensor, " batch"]
Times = Float[Tensor, " batch"]
