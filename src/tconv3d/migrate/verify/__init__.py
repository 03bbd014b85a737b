# SPDX-License-Identifier: Apache-2.0
"""Proof that two layers, or two networks, give the same numbers; or where and why they do not.

sides.py      what runs on each side: a layer call, or a network that a factory builds
compare.py    the same inputs and parameters through both; differences, tolerances
causes.py     a difference in words
report.py     the result as a table, as JSON and as one HTML page
"""

from __future__ import annotations
