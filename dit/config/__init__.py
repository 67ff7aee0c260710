"""What a user can choose: frozen dataclasses, the one source of flags, `--help`, JSON and docs.

The string under a field is its help text. The defaults are those of the digits preset.
"""

from dit.config.autoencoder import EncodeConfig, VaeConfig
from dit.config.editing import EditConfig
from dit.config.evaluation import (
    CompareConfig,
    EvalConfig,
    NllConfig,
    ScoringConfig,
    StatsConfig,
    SweepConfig,
)
from dit.config.flag_names import as_typed, flag_name
from dit.config.play import PlayConfig
from dit.config.run_tools import ConvertConfig, EmaConfig, ExportConfig, InfoConfig, ReportConfig
from dit.config.sampling import PERFORMANCE_FLAGS, SampleConfig, SamplerConfig, ShowConfig
from dit.config.serialization import to_json
from dit.config.training import OPTIMIZERS, ClassifierConfig, TrainConfig

__all__ = [
    "OPTIMIZERS",
    "PERFORMANCE_FLAGS",
    "ClassifierConfig",
    "CompareConfig",
    "ConvertConfig",
    "EditConfig",
    "EmaConfig",
    "EncodeConfig",
    "EvalConfig",
    "ExportConfig",
    "InfoConfig",
    "NllConfig",
    "PlayConfig",
    "ReportConfig",
    "SampleConfig",
    "SamplerConfig",
    "ScoringConfig",
    "ShowConfig",
    "StatsConfig",
    "SweepConfig",
    "TrainConfig",
    "VaeConfig",
    "as_typed",
    "flag_name",
    "to_json",
]
