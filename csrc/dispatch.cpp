// The table of compiled variants.
#include "nca.h"

namespace ncakern {

#define VARIANT(name, vl)           \
  namespace name {                  \
  void fwd(const ForwardArgs&);     \
  void bwd(const BackwardArgs&);    \
  void moments(const MomentsArgs&); \
  bool supported();                 \
  }
#include "variants.inc"
#undef VARIANT

const Variant* variants(int* count) {
  static const Variant table[] = {
#define VARIANT(name, vl) {#name, vl, name::supported, name::fwd, name::bwd, name::moments},
#include "variants.inc"
#undef VARIANT
  };
  *count = int(sizeof(table) / sizeof(table[0]));
  return table;
}

}  // namespace ncakern
