// SPDX-License-Identifier: Apache-2.0
// The OpenMP team of a framework in this process. Its idle workers spin for milliseconds after each operator of that framework, on the very
// processors that workers of our own would need: a layer behind another framework's operator took up to twice its time.
#pragma once

namespace tconv3d {

// Does the process show a libgomp to everybody (PyTorch does), and would the calling thread's team have just so many threads? Never in a forked child:
// it would wait for its parent's threads.
bool has_openmp_team(int threads);

// Runs fn(data) on every thread of that team.
void run_on_openmp_team(int threads, void (*fn)(void*), void* data);

// The calling thread's number in the team that runs it.
int openmp_worker();

// Of a forked child: from here on there is no team.
void forget_openmp();

}  // namespace tconv3d
