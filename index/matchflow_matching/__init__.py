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
    Marginals,
    Matches,
    MatchingFlow,
    MatchMode,
    MatchSettings,
    explain,
    global_cosines,
    match,
    top_flows,
    warm_up,
)

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
    "check_unit_length",
    "dequantise",
    "explain",
    "global_cosines",
    "match",
    "quantise",
    "top_flows",
    "warm_up",
]
