// The kernels of one instruction set. setup.py compiles this file once per level, with that level's flags.
#include "kernels.h"

#include "vec.h"

#include <algorithm>
#include <type_traits>

// clang-format off
#if defined(__AVX512F__)
#define DICENET_LANES 16
#define DICENET_TILE_ROWS 7
#elif defined(__AVX2__)
#define DICENET_LANES 8
#define DICENET_TILE_ROWS 4
#elif defined(__aarch64__)
#define DICENET_LANES 4
#define DICENET_TILE_ROWS 7
#else
#define DICENET_LANES 4
#define DICENET_TILE_ROWS 4
#endif

#include "dim_conv.inl"
#include "elementwise.inl"
#include "norm_act.inl"
#include "conv.inl"
// clang-format on

#define DICENET_STRING_OF(x) #x
#define DICENET_STRING(x) DICENET_STRING_OF(x)

namespace dicenet {
namespace DICENET_LEVEL {

extern const Kernels table;
const Kernels table = {
    DICENET_STRING(DICENET_LEVEL),
    kLanes,
    dim_conv_is_fast,
    dim_conv_scratch,
    dim_conv_row,
    dim_conv_weight_grad,
    local_rows,
    moments,
    norm_act,
    norm_act_grad_sums,
    norm_act_grad,
    join,
    join_grad,
    gemm,
    depth_wise_row,
    stem_row,
    pool_row,
    interleave,
    scale_shift_act,
    dot,
    axpy,
};

}  // namespace DICENET_LEVEL
}  // namespace dicenet
