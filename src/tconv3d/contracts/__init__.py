# SPDX-License-Identifier: Apache-2.0
"""What a call means and which calls are refused, for each original layer; shapes and scalars only, no framework."""
