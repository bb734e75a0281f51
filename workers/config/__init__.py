"""The one YAML file of a job: what it may say (pydantic models) and how it is read. See docs/config.md."""

from workers.config.data import Data, Generated
from workers.config.errors import ConfigError
from workers.config.fields import Categorical, FeatureField, Label, Multi, Numeric
from workers.config.job import Checkpoint, Cluster, Config
from workers.config.load import load_config
from workers.config.serving import Serving
from workers.config.train import EarlyStopping, Plateau, Train

__all__ = [
    "Categorical",
    "Checkpoint",
    "Cluster",
    "Config",
    "ConfigError",
    "Data",
    "EarlyStopping",
    "FeatureField",
    "Generated",
    "Label",
    "Multi",
    "Numeric",
    "Plateau",
    "Serving",
    "Train",
    "load_config",
]
