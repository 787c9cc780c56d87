// Everything the algorithm includes, above any target pragma: no AVX-512 copy of a std:: inline may leak out.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num() { return 0; }
static inline int omp_get_num_threads() { return 1; }
#endif

#include "interrupt.h"
#include "nca.h"
#include "philox.h"
#include "storage.h"
#include "workspace.h"
