"""The client's tests once more, with shards that are Ray actors."""

import pytest

from tests.ps.client.test_mistakes import *  # noqa: F403
from tests.ps.client.test_verbs import *  # noqa: F403

pytestmark = pytest.mark.cluster
