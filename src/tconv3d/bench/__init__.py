# SPDX-License-Identifier: Apache-2.0
"""A race of this library's engine against whatever else computes the layer on this machine.

`tconv3d bench` runs it on a user's layers, `benchmarks/` of the repository on recorded ones. No framework is imported
before an engine asks for it.
"""
