"""Shapes used everywhere, in the words of the glossary. Of what an export copies, no other module imports jaxtyping."""

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

TokenIds = Int[Tensor, "batch length"]
TokenMask = Bool[Tensor, "batch length"]
FlatIndex = Int[Tensor, " rows"]
Rows = Float[Tensor, "rows vocab"]
RowUnits = Int[Tensor, "rows vocab"]
RowTokens = Int[Tensor, " rows"]
RowValues = Float[Tensor, " rows"]
# Of the rows that are drawn from or asked about, which need not be all.
DrawnIndex = Int[Tensor, " drawn"]
DrawnTokens = Int[Tensor, " drawn"]
DrawnValues = Float[Tensor, " drawn"]
DrawnMask = Bool[Tensor, " drawn"]
HiddenStates = Float[Tensor, "batch length hidden"]
PerToken = Float[Tensor, "batch length"]
Figure = Shaped[Tensor, "batch length"]  # of each position, a number or a token
PerRow = Int[Tensor, " batch"]
Times = Float[Tensor, " batch"]
PerDraftToken = Float[Tensor, "drafts length"]  # of all drafts of a batch, draft 0 of each row first
Scalar = Float[Tensor, ""]
Count = Int[Tensor, ""]
# Any number of dimensions in front, or of all.
StatesAnywhere = Float[Tensor, "*positions hidden"]
ValuesAnywhere = Float[Tensor, "*positions"]
AnyMask = Bool[Tensor, "..."]
# A list of judged tokens, and the bins of a reliability diagram.
Scores = Float[Tensor, " count"]
Correct = Bool[Tensor, " count"]
Groups = Int[Tensor, " count"]
PerBin = Float[Tensor, " bins"]
