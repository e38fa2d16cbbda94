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
    "match",
    "quantise",
    "top_flows",
    "warm_up",
]
