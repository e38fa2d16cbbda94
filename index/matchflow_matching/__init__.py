"""Structural matching over arrays: scores, certificates and the flow that explains them. Knows no file and no wire."""

from matchflow_matching.errors import FeaturesInvalidError, MatchingError, SettingsInvalidError
from matchflow_matching.features import (
    CellGrid,
    FeatureBatch,
    Features,
    check_unit_length,
    dequantise,
    quantise,
)
from matchflow_matching.matching import (
    Flow,
    Matches,
    MatchingFlow,
    cell_shares,
    explain,
    explain_batch,
    global_cosines,
    match,
    top_flows,
    warm_up,
)
from matchflow_matching.settings import Marginals, MatchMode, MatchSettings

__all__ = [
    "CellGrid",
    "FeatureBatch",
    "Features",
    "FeaturesInvalidError",
    "Flow",
    "Marginals",
    "MatchMode",
    "MatchSettings",
    "Matches",
    "MatchingError",
    "MatchingFlow",
    "SettingsInvalidError",
    "cell_shares",
    "check_unit_length",
    "dequantise",
    "explain",
    "explain_batch",
    "global_cosines",
    "match",
    "quantise",
    "top_flows",
    "warm_up",
]
