"""The contract's assertions say what differed, as those of test modules do."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("contract_study")
